"""Every call by which a command reaches the disk, and every fork, fails in turn, or the command ends there.

    LD_PRELOAD=shim.so python -m tests.faults.harness CHECKPOINT FOLDER COMMAND [--all] [--faults EIO SIGKILL …]

The command runs in a child that is forked after the imports, once for each call and each fault: write, fsync, rename,
open, mkdir, unlink, truncate, fork. After each: one line of error and no traceback, what stood there before unharmed,
nothing half-written under its final name, no finished step lost; and the same command run again ends well, with the
latents of an undisturbed run. Of equal calls in a row the first, the middle and the last are tried, or with --all every
one. Prints what does not hold, one JSON line each, and last {"calls": n, "trials": n}.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wanlab import video
from wanlab.cli.app import main as wanlab
from wanlab.runfile import Run, part_directory, verify

FAULTS = {
    "ENOSPC": (errno.ENOSPC, 0),
    "EIO": (errno.EIO, 0),
    "EINTR": (errno.EINTR, 0),
    "SIGINT": (0, signal.SIGINT),
    "SIGTERM": (0, signal.SIGTERM),
    "SIGKILL": (0, signal.SIGKILL),
}
SMALL = ("--size", "32x16", "--frames", "5", "--steps", "3", "--prompt", "a red ball")
LIMIT = 300.0  # seconds a command may take

shim = ctypes.CDLL(None)
shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
shim.fault_name.restype = ctypes.c_char_p


def arguments(command: str, checkpoint: Path, out: Path) -> list[str]:
    """The command line of one of the program's commands."""
    return {
        "generate": ["generate", "--model", str(checkpoint), *SMALL, "--out", str(out), "--record", "latents"],
        "compare": ["compare", "--model", str(checkpoint), *SMALL, "--a", "cfg:last=1", "--out", str(out)],
        "continuity": ["continuity", "--model", str(checkpoint), *SMALL, "--out", str(out)],
        "report": ["report", str(out / "before"), "--out", str(out / "report.html")],
    }[command]


def run(args: list[str], folder: Path, log: Path, n: int, error: int, signum: int) -> tuple[int, list[str]]:
    """Run the command in a child; its exit code, negative for a signal, and the names of the calls it made if n is 0.

    Raises TimeoutError.
    """
    calls = log.with_suffix(".calls")
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = 70
        try:
            shim.fault_arm(os.fsencode(folder), n, error, signum)
            wanlab(args)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 70
        except BaseException:
            traceback.print_exc()
        finally:
            shim.fault_arm(b"/nowhere", 0, 0, 0) if n else None
            if not n:
                names = [shim.fault_name(k + 1).decode() for k in range(shim.fault_count())]
                shim.fault_arm(b"/nowhere", 0, 0, 0)
                calls.write_text("\n".join(names))
            try:
                sys.stdout.flush(), sys.stderr.flush()
            finally:
                os._exit(code)
    end = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), calls.read_text().split("\n") if not n else []
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError
        time.sleep(0.005)


def digests(folder: Path) -> dict[str, str]:
    """Of every file below a folder, what is in it."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def latents(folder: Path) -> dict[str, bytes]:
    """Of every run below a folder, its final latent."""
    out = {}
    for path in sorted(folder.rglob("*.h5")):
        with Run(path) as opened:
            out[str(path.relative_to(folder))] = np.asarray(opened["latent"]).tobytes()
    return out


def finished_steps(folder: Path) -> int:
    """Whole steps on the disk: those of finished runs, and of unfinished ones."""
    shards = sum(1 for p in folder.rglob("*.part/*.h5") if p.name.split("-")[0].isdigit() or p.stem.isdigit())
    whole = 0
    for path in folder.rglob("*.h5"):
        if not path.parent.name.endswith(".part"):
            with Run(path) as opened:
                whole += int(opened["sigma"].shape[0])
    return whole + shards


def broken(folder: Path) -> Iterator[str]:
    """Files that stand under a final name and are not whole."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or ".part" in str(path.relative_to(folder)):
            continue
        try:
            if path.suffix == ".h5":
                bad = bool(verify(path))
            elif path.suffix == ".json":
                bad = json.loads(path.read_text()) is None
            elif path.suffix == ".mp4":
                with video.read_mp4(path) as (_, frames):
                    bad = not sum(1 for _ in frames)
            elif path.suffix == ".html":
                bad = "</html>" not in path.read_text()[-200:]
            elif path.suffix == ".png":
                bad = not path.read_bytes().endswith(b"IEND\xaeB`\x82")
            else:
                bad = False
        except Exception as error:
            bad, path = True, Path(f"{path} ({error})")
        if bad:
            yield path.name


def chosen(calls: list[str]) -> list[int]:
    """Of equal calls in a row the first, the middle and the last, counted from 1; working names count as equal."""
    out: list[int] = []
    rows = itertools.groupby(enumerate(calls, 1), lambda call: re.sub(r"\.[0-9a-f]{12}\.", "", call[1]))
    for _, row in rows:
        numbers = [n for n, _ in row]
        out += sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
    return out


def judge(code: int, said: str, fault: str) -> Iterator[str]:
    """What is wrong with how a command ended, in words."""
    if "Traceback" in said or "Fatal Python" in said:
        yield "a traceback"
    if code == 70 or (code < 0 and fault != "SIGKILL"):
        yield f"exit code {code}"
    errors = [line for line in said.splitlines() if line.startswith(("wanlab: ", "error"))]
    if code in (1, 2, 3) and not errors:
        yield f"exit code {code} and no line that says why"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("command")
    parser.add_argument("--all", action="store_true", help="try every call")
    parser.add_argument("--only", type=int, nargs="+", help="try these calls")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--show", action="store_true", help="print the calls")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    start, log = given.folder / "start", given.folder / "log"

    def undisturbed(args: list[str], count: Path) -> list[str]:
        code, calls = run(args, count, log, 0, 0, 0)
        if code:
            sys.exit(f"undisturbed: exit code {code}\n{log.read_text()}")
        return calls

    # What stands there before: a finished comparison, which the command must not touch (and `report` reads).
    undisturbed(arguments("compare", given.checkpoint, start / "before"), start)
    before = digests(start)
    whole = given.folder / "whole"
    shutil.copytree(start, whole)
    calls = undisturbed(arguments(given.command, given.checkpoint, whole), whole)
    right = latents(whole)
    if given.show:
        print("\n".join(f"{k + 1} {name}" for k, name in enumerate(calls)))
    trials = 0
    for n in given.only or (range(1, len(calls) + 1) if given.all else chosen(calls)):
        for fault in given.faults:
            error, signum = FAULTS[fault]
            out = given.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(start, out)
            args, wrong = arguments(given.command, given.checkpoint, out), []
            try:
                code, _ = run(args, out, log, n, error, signum)
                said = log.read_text()
                wrong += judge(code, said, fault)
                wrong += [f"half-written: {name}" for name in broken(out)]
                steps = finished_steps(out)
                again, _ = run(args, out, given.folder / "log2", -1, 0, 0)
                if again:
                    wrong.append(f"the rerun ends with {again}: {(given.folder / 'log2').read_text()[-300:]}")
                elif latents(out) != right:
                    wrong.append("the rerun's latents differ")
                elif finished_steps(out) < steps:
                    wrong.append("finished steps lost")
                if leftover := [str(p) for p in out.rglob("*.part") if part_directory(p) or True][:3]:
                    wrong.append(f"left over after the rerun: {leftover}")
                after = digests(out)
                wrong += [f"harmed: {name}" for name, digest in before.items() if after.get(name) != digest]
            except TimeoutError:
                code, said = -1, log.read_text()
                wrong.append(f"hangs for {LIMIT:.0f} s")
            trials += 1
            if wrong:
                where = {"call": n, "what": calls[n - 1], "fault": fault, "code": code}
                print(json.dumps(where | {"wrong": wrong, "said": said[-400:]}), flush=True)
    print(json.dumps({"calls": len(calls), "trials": trials}))


if __name__ == "__main__":
    main()
