"""Every call by which a command reaches the disk, and every fork, fails in turn, or the command ends there.

    LD_PRELOAD=shim.so python -m tests.faults.harness CHECKPOINT FOLDER COMMAND … [--all] [--faults EIO SIGKILL …]
    LD_PRELOAD=shim.so python -m tests.faults.harness CHECKPOINT FOLDER COMMAND … --kills 5000

The command runs in a child that is forked after the imports, with the model loaded, once for each call and each fault:
write, fsync, rename, open, mkdir, rmdir, unlink, truncate, fork. Of calls of one kind on files of one kind one fault
strikes the first, the next fault the middle one and the next the last, or with --all each fault every one. With
--kills, a signal comes at a random call or a random moment instead, and again in the run after that, until one ends by
itself.

After each: one line of error with a remedy and no traceback, what stood there before unharmed, nothing half-written
under its final name. And the same command run again goes on from the last finished step and ends well, leaving no file
that an undisturbed run does not leave, and with the same results, bit for bit, but for measured times.

Figures are not drawn, an empty picture is written in their place: drawing takes most of the time and no file.

Prints what does not hold, one JSON line each, and last a line of counts.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import errno
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import wanlab
from wanlab import video
from wanlab.cli import app, stopping
from wanlab.runfile import Run, verify

FAULTS = {
    "ENOSPC": (errno.ENOSPC, 0),
    "EIO": (errno.EIO, 0),
    "EINTR": (errno.EINTR, 0),
    "SIGINT": (0, signal.SIGINT),
    "SIGTERM": (0, signal.SIGTERM),
    "SIGKILL": (0, signal.SIGKILL),
}
KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # as often as they stand here
SMALL = ("--size", "32x16", "--frames", "5", "--steps", "3", "--prompt", "a red ball")
DRAWN = {f"{name}_figure" for name in ("analysis", "frames", "guidance", "heatmap", "spaces", "theory")}
DRAWN |= {"contact_sheet", "divergence", "per_frame", "worst_frame"}
MOST_ERRORS = 4  # lines: of each of two runs, how many runs failed, and that no pair is left to compare
OBEYED = (signal.SIGINT, signal.SIGTERM)
MOST_KILLS = 10  # of a command that keeps nothing of what a killed one did, each may hit
LIMIT = 300.0  # seconds a command may take
WORKING = re.compile(r"\.[0-9a-f]{12}\.part")  # of a file that was being written: a killed command leaves it
MEASURED = re.compile(r"(seconds|speedup)(?!_predicted)")  # names of what differs from run to run
TIMES = re.compile(r"[0-9.]+x|–")
UNTIMED = "speed-up"  # in what is said where runs of several processes cannot be timed against each other

shim = ctypes.CDLL(None)
shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
shim.fault_name.restype = ctypes.c_char_p


@dataclass(frozen=True)
class Blow:
    """What happens to a command: `error` or a signal at a call, counted from 1, or a signal after some seconds."""

    call: int = 0
    error: int = 0
    signum: int = 0
    after: float = LIMIT


def arguments(command: str, checkpoint: Path, out: Path) -> list[str]:
    """The command line of one of the program's commands."""
    return {
        "generate": ["generate", "--model", str(checkpoint), *SMALL, "--out", str(out), "--record", "latents"],
        "compare": ["compare", "--model", str(checkpoint), *SMALL, "--a", "cfg:last=1", "--out", str(out)],
        "continuity": ["continuity", "--model", str(checkpoint), *SMALL, "--out", str(out)],
        "report": ["report", str(out / "before"), "--out", str(out / "report")],
    }[command]


# --- what a trial need not do again -----------------------------------------------------------------------------------


def get_ready(checkpoint: Path) -> None:
    """Import all, load the model and leave figures undrawn, in this process, for the children that it forks."""
    for module in pkgutil.walk_packages(wanlab.__path__, "wanlab."):
        if module.name != "wanlab.__main__":
            with suppress(ImportError):
                importlib.import_module(module.name)
    import torch
    from matplotlib.figure import Figure

    from wanlab.analysis import figures
    from wanlab.engine.model import loading

    torch.set_num_threads(1)
    load, kept = loading.load, {}

    def load_once(asked: loading.Checkpoint, *args: Any, **options: Any) -> loading.Model:
        key = repr((asked.path, args, sorted(options.items())))
        if key not in kept:
            kept[key] = load(asked, *args, **options)
        return kept[key]

    described = loading.describe(str(checkpoint))
    load_once(described, "cpu", torch.float32, torch.float32, precision="reference", memory="resident")
    loading.load = load_once

    def empty(drawn: Any, path: Path, *args: Any, **options: Any) -> Path:
        return figures.save(Figure((0.1, 0.1)), path)

    for module in (figures, *(sys.modules[f"wanlab.analysis.figures.{n}"] for n in ("compare", "continuity"))):
        for name in DRAWN & set(vars(module)):
            setattr(module, name, empty)


def import_what(names: list[str]) -> None:
    """Import what a command had imported, then keep all that is here out of the garbage collector's sight."""
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


# --- one command ------------------------------------------------------------------------------------------------------


def work(args: list[str], folder: Path, log: Path, blow: Blow) -> int:
    """The child: run the command with its output in `log`, note its calls and imports beside; its exit code."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    install = stopping.install

    def ready() -> None:
        install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OBEYED)

    stopping.install = ready
    code = 70
    try:
        shim.fault_arm(os.fsencode(folder), blow.call, blow.error, blow.signum if blow.call else 0)
        app.main(args)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 70
    except BaseException:
        traceback.print_exc()
    count = shim.fault_count()
    calls = [shim.fault_name(k + 1).decode() for k in range(count)] if blow == Blow() else []
    shim.fault_arm(b"/nowhere", 0, 0, 0)
    log.with_suffix(".calls").write_text("\n".join(calls))
    if blow == Blow():
        log.with_suffix(".modules").write_text("\n".join(sys.modules))
    sys.stdout.flush(), sys.stderr.flush()
    return code


def run(args: list[str], folder: Path, log: Path, blow: Blow) -> int:
    """Run the command in a child; its exit code, negative for a signal. Raises TimeoutError."""
    # What comes before the command obeys signals waits until it does: a test of its own tries signals in the imports.
    signal.pthread_sigmask(signal.SIG_BLOCK, OBEYED)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = work(args, folder, log, blow)
        finally:
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OBEYED)
    ended = os.pidfd_open(child)
    try:
        if not select.select([ended], [], [], blow.after)[0] and blow.after < LIMIT:
            os.kill(child, blow.signum)
        if not select.select([ended], [], [], LIMIT)[0]:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError
    finally:
        os.close(ended)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


# --- what lies there afterwards ---------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Of every file below a folder, what is in it."""
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def results(folder: Path) -> dict[str, Any]:
    """Of every file and folder below a folder but `before`, what has to be as in an undisturbed run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] != "before" and not WORKING.search(str(name)):
            found[str(name)] = "" if path.is_dir() else content(path)
    return found


def content(path: Path) -> Any:
    """What is in a file, but for measured times."""
    if path.suffix == ".h5":
        return in_run(path, digest(path))
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        rows = csv.DictReader(path.read_text().splitlines())
        return [{n: v for n, v in row.items() if not MEASURED.match(n)} for row in rows]
    if path.suffix in (".md", ".txt"):
        lines = [re.sub(" +", " ", line) for line in path.read_text().split("\n") if line and UNTIMED not in line]
        return [TIMES.sub("#", line) for line in lines]
    return digest(path)


@lru_cache(64)
def in_run(path: Path, made: str) -> Any:
    """What is in a run file of digest `made`. Raises ValueError where it is not whole."""
    if problems := verify(path):
        raise ValueError(problems)
    with Run(path) as opened:
        values = {n: hashlib.sha256(np.asarray(d).tobytes()).hexdigest() for n, d in opened.data.items()}
        return opened.digest, {n: v for n, v in values.items() if n != "seconds"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {n: without_times(v) for n, v in value.items() if not MEASURED.match(n)}
    if isinstance(value, list):
        return [without_times(v) for v in value if not (isinstance(v, str) and UNTIMED in v)]
    return value


def kept_steps(folder: Path) -> dict[str, int]:
    """Of every unfinished run, the step that it can go on from."""
    found = {}
    for directory in folder.rglob("*.h5.part"):
        steps = {int(p.stem.split("-")[1]) for p in directory.glob("step-*.wls")}
        states = [int(p.stem.split("-")[1]) for p in directory.glob("resume-*.wls")]
        name = str(directory.relative_to(folder)).removesuffix(".part")
        found[name] = max((k for k in states if set(range(k)) <= steps), default=0)
    return found


def broken(folder: Path, whole: set[str]) -> Iterator[str]:
    """Files that stand under a final name and are not whole; `whole` are digests of files known to be."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or ".part" in str(path.relative_to(folder)) or digest(path) in whole:
            continue
        try:
            if path.suffix == ".h5":
                bad = not in_run(path, digest(path))
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
                bad = path.suffix != ".lock" and not path.read_text().endswith("\n")
        except Exception as error:
            bad, path = True, Path(f"{path} ({error})")
        if bad:
            yield path.name


def judge(code: int, said: str, signum: int) -> Iterator[str]:
    """What is wrong with how a command ended, in words."""
    if any(words in said for words in ("Traceback", "Fatal Python", "Exception ignored")):
        yield "a traceback"
    errors = [line for line in said.splitlines() if line.startswith("wanlab: ")]
    expected = {0, -signal.SIGKILL} if signum == signal.SIGKILL else {0, 128 + signum} if signum else {0, 1, 2, 3}
    if code not in expected:
        yield f"exit code {code}"
    elif code > 0 and not 1 <= len(errors) <= (1 if signum else MOST_ERRORS):
        yield f"exit code {code} and {len(errors)} lines that say why"
    elif code > 0 and not all(re.search(r" \([^()]{8,}.*\)$", line) for line in errors):
        yield "no remedy"


# --- trials -----------------------------------------------------------------------------------------------------------


class Bench:
    """A command, its folder, and what an undisturbed run of it leaves there."""

    def __init__(self, checkpoint: Path, folder: Path, command: str) -> None:
        self.command, self.start, self.out = command, folder / "start", folder / command
        self.log = folder / f"{command}.log"
        self.args = arguments(command, checkpoint, self.out)
        if not self.start.exists():
            self._undisturbed(arguments("compare", checkpoint, self.start / "before"), self.start)
        self.before = digests(self.start)
        self.renew()
        self._undisturbed(self.args, self.out)
        self.calls = self.log.with_suffix(".calls").read_text().split("\n")
        self.renew()  # again, since all is imported now: for how long it takes, and that it is always the same
        began = time.monotonic()
        self._undisturbed(self.args, self.out)
        self.seconds = time.monotonic() - began
        self.right = results(self.out)
        self.whole = set(digests(self.out).values())

    def _undisturbed(self, args: list[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        code = run(args, folder, self.log, Blow())
        if code:
            sys.exit(f"undisturbed: exit code {code}\n{self.log.read_text()}")
        import_what(self.log.with_suffix(".modules").read_text().split("\n"))

    def renew(self) -> None:
        """Begin anew: what stands there before is a finished comparison, which no command may touch."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.start, self.out)

    def attempt(self, blow: Blow) -> tuple[int, list[str]]:
        """Run the command with a blow: its exit code, and what is wrong afterwards, in words."""
        finished = {n: d for n, d in digests(self.out).items() if n.endswith(".h5")}
        steps = {n: k for n, k in kept_steps(self.out).items() if n not in finished}
        try:
            code = run(self.args, self.out, self.log, blow)
        except TimeoutError:
            return -1, [f"hangs for {LIMIT:.0f} s"]
        wrong = list(judge(code, self.log.read_text(), blow.signum))
        wrong += [f"half-written: {name}" for name in broken(self.out, self.whole)]
        now = digests(self.out)
        wrong += [f"harmed: {name}" for name, made in {**self.before, **finished}.items() if now.get(name) != made]
        wrong += [f"lost: {step}" for step in self._lost(steps)]
        if code == 0:
            wrong += self._differences(blow)
        return code, wrong

    def _lost(self, steps: dict[str, int]) -> Iterator[str]:
        """Of steps that a run could go on from, those that it cannot any more, or did not."""
        now = kept_steps(self.out)
        for name, step in steps.items():
            path = self.out / name
            if path.exists():
                with Run(path) as opened:
                    at = int(opened.attrs["resumed_from_step"])
            else:
                at = now.get(name, 0)
            if at < step:
                yield f"{name}: {step} steps were finished, {at} are kept"

    def _differences(self, blow: Blow) -> Iterator[str]:
        """What of a finished command is not as an undisturbed run leaves it. Without what could not be read for it a
        page is another, and that is said."""
        found, said = results(self.out), blow.error and "is left out" in self.log.read_text()
        for name in sorted(set(found) | set(self.right)):
            if name not in found:
                yield f"not there: {name}"
            elif name not in self.right:
                if not (blow.error and re.search(r"lock|\.h5\.part", name)):  # the next run removes it
                    yield f"left over: {name}"
            elif found[name] != self.right[name] and not (said and name.endswith(".html")):
                yield f"differs: {name}"

    def trial(self, blow: Blow, fault: str) -> bool:
        """One blow, and the command run again: whether all held; prints what did not."""
        self.renew()
        code, wrong = self.attempt(blow)
        said = self.log.read_text()
        again, after = self.attempt(Blow(call=-1))
        wrong += [f"the rerun: {words}" for words in after]
        if again:
            wrong.append(f"the rerun ends with {again}: {self.log.read_text()[-300:]}")
        self.tell(wrong, {"call": blow.call, "what": self.calls[blow.call - 1], "fault": fault, "code": code}, said)
        return not wrong

    def chain(self, chance: random.Random) -> tuple[Counter[str], int]:
        """Kill the command again and again until it ends by itself, or is left alone after so many times: the kills by
        signal, and how many went wrong."""
        self.renew()
        kills: Counter[str] = Counter()
        bad = 0
        while True:
            signum = chance.choice(KILLS)
            if kills.total() == MOST_KILLS:
                blow = Blow(call=-1)
            elif chance.random() < 0.5:
                blow = Blow(call=chance.randint(1, len(self.calls)), signum=signum)
            else:
                blow = Blow(after=chance.uniform(0.0, self.seconds), signum=signum)
            code, wrong = self.attempt(blow)
            self.tell(wrong, {"kills": sum(kills.values()), "blow": str(blow), "code": code}, self.log.read_text())
            bad += bool(wrong)
            if code == 0 or (wrong and code != -signum and code != 128 + signum):
                return kills, bad
            kills[signal.Signals(signum).name] += 1

    def tell(self, wrong: list[str], where: dict[str, Any], said: str) -> None:
        if wrong:
            print(json.dumps({"command": self.command} | where | {"wrong": wrong, "said": said[-1500:]}), flush=True)


def chosen(calls: list[str]) -> list[list[int]]:
    """Of calls of one kind on files of one kind the first, the middle and the last, counted from 1."""
    kinds: dict[str, list[int]] = {}
    for n, call in enumerate(calls, 1):
        kinds.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "#", call), []).append(n)
    return [[row[0], row[len(row) // 2], row[-1]] for row in kinds.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--all", action="store_true", help="try every call")
    parser.add_argument("--only", type=int, nargs="+", help="try these calls")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--kills", type=int, help="kill the commands so many times instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills")
    given = parser.parse_args()
    get_ready(given.checkpoint)
    benches = [Bench(given.checkpoint, given.folder, command) for command in given.commands]
    counts: Counter[str] = Counter()
    if given.kills:
        chance = random.Random(given.seed)
        while counts["kills"] < given.kills:
            bench = chance.choice(benches)
            kills, bad = bench.chain(chance)
            counts.update(kills)
            counts.update({"kills": kills.total(), f"kills of {bench.command}": kills.total(), "ends": 1, "wrong": bad})
            print(json.dumps(counts), file=sys.stderr, flush=True)
    else:
        for bench in benches:
            counts["calls"] += len(bench.calls)
            rows = [[n] for n in given.only or range(1, len(bench.calls) + 1)]
            for row in rows if given.all or given.only else chosen(bench.calls):
                for fault in given.faults:
                    error, signum = FAULTS[fault]
                    call = row[list(FAULTS).index(fault) % len(row)]
                    held = bench.trial(Blow(call, error, signum), fault)
                    counts.update({"trials": 1, f"trials of {bench.command}": 1, "wrong": not held})
                print(json.dumps(counts), file=sys.stderr, flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
