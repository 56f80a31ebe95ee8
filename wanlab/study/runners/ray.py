"""Ray's workers: a process on every GPU of a machine or a cluster, which keeps the model loaded and takes one group
after the other.

Ray places the workers, starts them where machines join, and tells which are lost; their groups go to the others, which
go on from the last finished step. All machines see the job's folder under one path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.errors import UsageError, WanlabError
from wanlab.spec import RunSpec
from wanlab.study.runners.groups import PAUSE, PairGroup, Stamp, claim, stamps
from wanlab.study.runners.local import Overall, Watcher, check_places, run_group, unknown_words

if TYPE_CHECKING:
    from wanlab.engine.run import Progress

TINY_SHARE = 0.25  # of a GPU, for the model in the package
LOSSES = 3  # of workers, that a group outlives
PATIENCE = 60  # seconds without a worker after which that is said

Event = tuple[str, Path, tuple[Any, ...]]


def run_groups(
    groups: Sequence[PairGroup], *, force: bool, gif: bool, watcher: Watcher, address: str | None
) -> list[Path]:
    """Run every spec into its file on the workers of a Ray cluster; returns the files of runs that failed.

    address  of the cluster; RAY_ADDRESS, or a cluster of this machine alone, without one

    What cannot be done fails before a model is loaded. A run that fails among several is told to the watcher; alone it
    raises. Raises UsageError and WanlabError.
    """
    specs = [spec for group in groups for spec, _ in group.runs]
    for spec in specs:
        if spec.device.startswith("cuda:"):
            raise UsageError(f"--device {spec.device} is one GPU, and Ray gives out all", "use --device cuda")
    check_places(groups)
    with _cluster(address):
        job = _Job(groups, specs, stamps(groups) if force else {}, gif, watcher)
        watcher.start(len(specs), sum(s.steps for s in specs))
        try:
            job.run()
        finally:
            job.end()
            watcher.end()
    return job.failed


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster while inside."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise WanlabError("ray is not installed", "pip install 'wanlab[ray]'") from error
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    given: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **given)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WanlabError(
            f"cannot reach a Ray cluster at {address}: {reason}", "start one with `ray start --head`"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():  # Ray's own would end the program at once
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
        yield
    finally:
        ray.shutdown()


# --- in a worker -------------------------------------------------------------------------------------------------


class Worker:
    """What a worker's process holds. One thread samples, another one says how far it is."""

    def __init__(self) -> None:
        self._news = _News()

    def begin(self, version: str, folder: str, specs: Sequence[RunSpec]) -> WanlabError | None:
        """Look whether this machine can do the job, before anything is loaded; what is against it."""
        from wanlab.engine import run

        try:
            if version != __version__:
                raise WanlabError(f"{platform.node()} has wanlab {__version__}, not {version}", "install one version")
            if not os.path.isdir(folder):
                raise WanlabError(f"{platform.node()} has no folder {folder}", "share it under the same path")
            os.chdir(folder)
            for spec in specs:
                run.plan(spec)
        except WanlabError as error:
            return error
        self._models = run.Models()
        return None

    def sample(self, group: PairGroup, before: Mapping[Path, Stamp], gif: bool) -> list[Event] | None:
        """Make the runs of a group; what is new since the last `news`. None where another process has the group."""
        with claim(group) as mine:
            if not mine:
                time.sleep(PAUSE)
                return None
            run_group(group, self._models, self._news, before, gif=gif)
        return self.news()

    def news(self) -> list[Event]:
        """What is new since the last call."""
        return self._news.take()


class _News(Watcher):
    """What a job is told, kept until it is asked for; of the steps of a run only the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._place = Path()

    def take(self) -> list[Event]:
        with self._lock:
            events, self._events = self._events, []
        return events

    def _add(self, kind: str, place: Path, *values: Any) -> None:
        with self._lock:
            if kind == "sample" and self._events and self._events[-1][:2] == (kind, place):
                self._events.pop()
            self._events.append((kind, place, values))

    def begin(self, spec: RunSpec, place: Path) -> None:
        self._place = place

    def progress(self, progress: Progress) -> None:
        if progress.notice:
            self._add("say", self._place, progress.notice)
        if progress.phase in ("kept", "resume", "sample"):
            self._add(progress.phase, self._place, progress.step)

    def finish(self, place: Path) -> None:
        self._add("finish", place)

    def fail(self, place: Path, error: WanlabError) -> None:
        self._add("fail", place, error)

    def say(self, text: str) -> None:
        self._add("say", self._place, text)


# --- in the command ----------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """How far every run is."""

    steps: dict[Path, int]
    """Of each run in all."""
    at: Counter[Path] = field(default_factory=Counter)
    done: set[Path] = field(default_factory=set)
    kept: set[Path] = field(default_factory=set)
    sampled: int = 0

    def note(self, kind: str, place: Path, step: int) -> None:
        """A run is at a step: by being "kept" or on "resume", or because it was sampled so far."""
        if kind == "sample":
            self.sampled += max(0, step - self.at[place])
        elif kind == "kept" and not self.at[place]:
            self.kept.add(place)
        self.at[place] = step

    def end(self, place: Path) -> None:
        self.done.add(place)
        self.at[place] = self.steps[place]

    def overall(self, workers: int) -> Overall:
        left = sum(self.steps.values()) - self.at.total()
        return Overall(done=len(self.done), kept=len(self.kept), sampled=self.sampled, left=left, workers=workers)


class _Job:
    """Groups given to workers as these become free."""

    def __init__(
        self,
        groups: Sequence[PairGroup],
        specs: Sequence[RunSpec],
        before: Mapping[Path, Stamp],
        gif: bool,
        watcher: Watcher,
    ) -> None:
        import ray

        self._ray: Any = ray
        self.failed: list[Path] = []
        self._left = deque(groups)
        self._unchecked = list(specs)
        self._before, self._gif, self._watcher = before, gif, watcher
        self._tally = _Tally({place: spec.steps for group in groups for spec, place in group.runs})
        self._losses: Counter[Path] = Counter()
        self._stillborn = 0  # workers lost before they had begun, one after the other
        self._starting: dict[Any, Any] = {}  # what each new worker is going to answer, and the worker
        self._busy: dict[Any, tuple[Any, PairGroup]] = {}
        self._news: dict[Any, Any] = {}  # by the key of the busy worker, what it has been asked for
        self._idle: list[Any] = []
        self._needs = kind, share = self._resources(specs)
        gpus = share if kind == "GPU" else 0
        self._worker: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=2)(Worker)
        if words := unknown_words(specs):
            watcher.say(words)

    def _resources(self, specs: Sequence[RunSpec]) -> tuple[str, float]:
        """What a worker takes: CPU, or GPU, and how much of it."""
        devices = {spec.device for spec in specs}
        if "cuda" in devices or ("auto" in devices and self._ray.cluster_resources().get("GPU", 0) > 0):
            return "GPU", TINY_SHARE if all(s.model == "tiny" for s in specs) else 1.0
        return "CPU", 1.0

    def run(self) -> None:
        """Go on until every group is done."""
        patience = time.monotonic() + PATIENCE
        while self._left or self._busy:
            self._hire()
            while self._idle and self._left:
                self._give(self._idle.pop(), self._left.popleft())
            for ref in self._ray.wait([*self._starting, *self._busy], timeout=PAUSE)[0]:
                if ref in self._starting:
                    self._begun(ref)
                else:
                    self._returned(ref)
            self._listen()
            self._watcher.overall(self._tally.overall(len(self._busy)))
            if not (self._busy or self._idle) and time.monotonic() > patience:
                self._watcher.say(f"waiting for a free {self._needs[0]} of the Ray cluster")
                patience = float("inf")

    def end(self) -> None:
        """Let go of every worker, at once: what is unfinished goes on from the last finished step."""
        for worker in (*self._idle, *self._starting.values(), *(w for w, _ in self._busy.values())):
            self._dismiss(worker)

    def _dismiss(self, worker: Any) -> None:
        with contextlib.suppress(Exception):  # it may be lost already
            self._ray.kill(worker)

    def _hire(self) -> None:
        """As many workers as there is work and room for, and one that waits: for a machine that joins, or an autoscaler
        that adds one."""
        if not self._left:
            while self._idle:
                self._dismiss(self._idle.pop())
            while self._starting:
                self._dismiss(self._starting.popitem()[1])
            return
        kind, share = self._needs
        room = int(self._ray.cluster_resources().get(kind, 0) / share) + 1
        there = len(self._starting) + len(self._busy) + len(self._idle)
        for _ in range(min(len(self._left) + len(self._busy), room) - there):
            worker = self._worker.remote()
            self._starting[worker.begin.remote(__version__, os.getcwd(), self._unchecked)] = worker

    def _begun(self, ref: Any) -> None:
        worker = self._starting.pop(ref)
        try:
            error = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as lost:
            self._stillborn += 1
            if self._stillborn > LOSSES:
                reason = " ".join(str(lost).split())[:300]
                raise WanlabError(f"no worker can begin: {reason}", "look for wanlab on every machine") from lost
            return
        if error is not None:
            raise error
        self._unchecked, self._stillborn = [], 0
        self._idle.append(worker)

    def _give(self, worker: Any, group: PairGroup) -> None:
        self._busy[worker.sample.remote(group, self._before, self._gif)] = worker, group

    def _returned(self, ref: Any) -> None:
        worker, group = self._busy.pop(ref)
        asked = self._news.pop(ref, None)
        try:
            events = self._ray.get(ref)
            if asked is not None:  # of before
                self._hear(self._ray.get(asked))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, WanlabError) else error from None
        except self._ray.exceptions.RayError:
            self._dismiss(worker)
            self._lose(group)
            return
        self._idle.append(worker)
        if events is None:
            self._left.append(group)
        else:
            self._hear(events)

    def _lose(self, group: PairGroup) -> None:
        """Another worker goes on with a group; not for ever, for it may be what kills them."""
        self._losses[group.key] += 1
        missing = [place for _, place in group.runs if place not in self._tally.done]
        if not missing:
            return
        if self._losses[group.key] <= LOSSES:
            self._watcher.say(f"a worker was lost with {missing[0]}: another one goes on with it")
            self._left.appendleft(group)
            return
        for place in missing:
            lost = WanlabError(f"{self._losses[group.key]} workers were lost with it", "see Ray's logs, /tmp/ray")
            self._hear([("fail", place, (lost,))])

    def _listen(self) -> None:
        """Hear what busy workers were asked for the time before, and ask again."""
        asked = list(self._news.values())
        ready = set(self._ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        for key, (worker, _) in self._busy.items():
            news = self._news.get(key)
            if news in ready:
                with contextlib.suppress(self._ray.exceptions.RayError):  # said where its group is missed
                    self._hear(self._ray.get(news))
            if news is None or news in ready:
                self._news[key] = worker.news.remote()

    def _hear(self, events: Sequence[Event]) -> None:
        for kind, place, values in events:
            if kind == "say":
                self._watcher.say(values[0])
            elif place in self._tally.done:  # the group has been gone through before, by a worker that is lost
                continue
            elif kind not in ("fail", "finish"):
                self._tally.note(kind, place, values[0])
            elif kind == "fail":
                self._fail(place, values[0])
            else:
                self._tally.end(place)
                try:
                    self._watcher.finish(place)  # which may draw, and fail as a run does
                except WanlabError as error:
                    self._fail(place, error)

    def _fail(self, place: Path, error: WanlabError) -> None:
        if len(self._tally.steps) == 1:
            raise error
        self._tally.end(place)
        self.failed.append(place)
        self._watcher.fail(place, error)
