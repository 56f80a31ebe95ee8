"""Mutated files: whatever the bytes, a reader gives a result or one WanlabError, in bounded time and memory.

`python -m tests.fuzz KIND FOLDER COUNT SEED FIRST` opens mutants FIRST … of the samples in FOLDER and says of each how
it ended; `fuzz` runs that in a process of its own, so that one that crashes or hangs is counted and gone on from.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import mutators
from wanlab.errors import WanlabError
from wanlab.runfile.untrusted import FAILED

ROOT = Path(__file__).parent.parent
SECONDS, BYTES = 10.0, 2**30
WITH_TORCH = ("latents", "tensors", "checkpoint")  # kinds whose readers import it
# Bytes of a process that has imported a torch without CUDA. One with it takes 400 MB more, which are not the mutant's.
PLAIN_TORCH = 2**28
reader: Any = None
SILENT = 60.0  # seconds of the clock after which a process that says nothing hangs


def open_run(path: Path) -> None:
    """As a report and `inspect --untrusted` read it: in a process of its own, which a file may end."""
    from tests import fuzz  # by the name that the other process knows it by
    from wanlab.runfile import Reader

    global reader
    reader = reader or Reader()
    reader(fuzz.open_here, path)


def open_here(path: Path) -> None:
    """A run file whose metadata has no other checksums than its own, in this process."""
    from wanlab.analysis.measured import read_run, small_film
    from wanlab.runfile import summary, verify

    json.dumps(summary(path), default=str)
    verify(path)
    small_film(path)
    read_run(path)


def open_shard(path: Path) -> None:
    from wanlab.runfile.shards import load_shard, shapes_in

    shapes_in(path)
    load_shard(path)


def open_manifest(path: Path) -> None:
    from wanlab.runfile import RunWriter
    from wanlab.runfile.shards import read_manifest

    manifest = read_manifest(path.parent)
    if manifest is not None:
        RunWriter.resume_point(path.parent.with_suffix(""), manifest["digest"])


def open_result(path: Path) -> None:
    """comparison.json or continuity_statistics.json, as a report reads, judges and shows it."""
    from wanlab.analysis import hypotheses as h
    from wanlab.study import page, report

    evidence = h.collect([path])
    if evidence.problems:
        raise WanlabError(evidence.problems[0][1])
    judged, figures = h.judge(evidence, h.Thresholds()), h.reproduce(evidence)
    page.page(evidence, judged, figures)
    report.as_markdown(judged, figures, evidence)


def open_calibration(path: Path) -> None:
    from wanlab.engine.calibration import load

    load(str(path))


def open_scores(path: Path) -> None:
    from wanlab.study import vbench

    vbench.table(vbench.scores(path))


def open_prompts(path: Path) -> None:
    from wanlab.study.requests import read_prompts

    read_prompts([], str(path))


def open_thresholds(path: Path) -> None:
    from wanlab.analysis.hypotheses import thresholds

    thresholds(path)


def open_design(path: Path) -> None:
    from wanlab.study.design import read_methods

    read_methods(path)


def open_spec(path: Path) -> None:
    from wanlab.spec import RunSpec

    RunSpec.from_json(path.read_text("utf-8", "replace")).digest()


def open_checkpoint(path: Path) -> None:
    from wanlab.engine.model.checkpoint import describe

    folder = next(p for p in path.parents if (p / "tokenizer").is_dir())
    describe(str(folder))


def open_tensors(path: Path) -> None:
    from wanlab.engine.model import weights

    weights.heads([path])
    for _ in weights.stream([path]):
        pass


def open_latents(path: Path) -> None:
    from wanlab.engine import legacy

    for _ in legacy.read(path.parent):
        pass


def open_video(path: Path) -> None:
    from wanlab.video import read_mp4

    with read_mp4(path) as (_, frames):
        for _ in frames:
            pass


READERS: dict[str, Callable[[Path], None]] = {
    name.removeprefix("open_"): value for name, value in list(globals().items()) if name.startswith("open_")
}


def raises(path: Path) -> None:
    raise KeyError("not foreseen")


def crashes(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def grows(path: Path) -> bytes:
    return b"x" * 2**29


def spins(path: Path) -> None:
    began = time.process_time()
    while time.process_time() < began + 4:
        pass


def sleeps(path: Path) -> None:
    time.sleep(60)


FAULTY = {f.__name__: f for f in (raises, crashes, grows, spins, sleeps)}
"""What no reader may do, for the tests that it is noticed."""


def read_or_harm(path: Path) -> Any:
    """`read_run`, which a file called as one of these makes do that."""
    from wanlab.analysis.measured import read_run

    return FAULTY.get(path.stem, read_run)(path)


def samples(kind: str, folder: Path) -> None:
    """What is mutated, written into `folder`: every file there that a mutator knows is taken in turn."""
    from tests import samples as made

    folder.mkdir()
    getattr(made, kind)(folder)


@dataclass
class Ended:
    """How mutants ended. `crashed` and `hung` say which: those that ended their process or kept it over the limit."""

    count: int = 0
    refused: int = 0
    raised: dict[int, str] = field(default_factory=dict)
    crashed: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    """Seconds of processor time, and the mutant."""
    largest: tuple[int, int] = (0, -1)
    """Bytes that a process held at most; and the mutant that first did."""

    @property
    def faults(self) -> str:
        found = {f"mutant {k}": said for k, said in (self.raised | self.crashed).items()}
        if self.slowest[0] > SECONDS:
            found[f"mutant {self.slowest[1]}"] = f"took {self.slowest[0]:.1f} s"
        if self.largest[0] > BYTES:
            found[f"mutant {self.largest[1]}"] = f"took {self.largest[0] / 2**20:.0f} MiB"
        return "\n".join(f"{k}: {v}" for k, v in list(found.items())[:20])


def fuzz(kind: str, folder: Path, count: int, seed: int = 0) -> Ended:
    """Open `count` mutants of the kind's samples, which are made in `folder`/samples if they are not there."""
    if not (folder / "samples").exists():
        samples(kind, folder / "samples")
    ended, at = Ended(), 0
    while at < count:
        command = [sys.executable, "-m", "tests.fuzz", kind, str(folder), str(count), str(seed), str(at)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0) as process:
            assert process.stdout is not None
            rest = b""
            while select.select([process.stdout], [], [], SILENT)[0] and (
                data := os.read(process.stdout.fileno(), 65536)
            ):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    _count(ended, json.loads(line), at)
                    at += 1
            if at < count:
                process.kill()
                ended.crashed[at] = f"the process ended with {process.wait()}, or said nothing for {SILENT:.0f} s"
                at += 1
                if len(ended.crashed) > 100:
                    break
    ended.count = at
    return ended


def _count(ended: Ended, said: list[Any], k: int) -> None:
    how, seconds, taken = said
    ended.refused += how == ""
    if how:
        ended.raised[k] = how
    if seconds > ended.slowest[0]:
        ended.slowest = (seconds, k)
    if taken > ended.largest[0]:  # a peak only grows: the first mutant that reached it
        ended.largest = (taken, k)


def peak() -> int:
    """Bytes that this process, the one that reads for it, or its largest child held at most."""
    # Not ru_maxrss of this process: that begins with what its parent held when it was made.
    held = [int(said.split("VmHWM:")[1].split()[0]) for said in (_status("self"), _of_reader("status")) if said]
    return 1024 * max(*held, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def used() -> float:
    """Seconds of processor time of this process and its children."""
    ended = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ticks = _of_reader("stat").rpartition(")")[2].split()[11:13]
    return ended + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _of_reader(name: str) -> str:
    process = reader and reader._process
    return Path(f"/proc/{process.pid}/{name}").read_text() if process else ""


def _status(process: str) -> str:
    return Path(f"/proc/{process}/status").read_text()


def main(kind: str, folder: Path, count: int, seed: int, first: int) -> None:
    import faulthandler

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = folder / f"mutant-{first}"
    shutil.copytree(folder / "samples", place)
    given = sorted(p for p in place.rglob("*") if p.suffix in mutators.BY_SUFFIX and not p.name.startswith("_"))
    held = {p: p.read_bytes() for p in given}
    libraries = 0
    if kind in WITH_TORCH:
        import torch  # noqa: F401

        libraries = max(0, peak() - PLAIN_TORCH)
    for path in given if kind in READERS else []:
        READERS[kind](path)  # imports are made
    for k in range(first, count):
        chance = random.Random(f"{seed} {k}")
        few = kind in ("run", "here")  # nine of ten of the first sample, which is read fast
        path = given[(k // 10 % len(given) if k % 10 == 0 else 0) if few else k % len(given)]
        path.write_bytes(mutators.mutate(path, held[path], chance))
        began, how = used(), "-"
        try:
            (READERS | FAULTY)[kind](path)
        except WanlabError as error:
            how = "" if "\n" not in str(error) and FAILED not in str(error) else f"said {error}"
        except BaseException as error:
            import traceback

            how = f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"
        path.write_bytes(held[path])
        os.write(1, json.dumps([None if how == "-" else how, used() - began, peak() - libraries]).encode() + b"\n")
    if reader:
        reader.close()
    shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))
