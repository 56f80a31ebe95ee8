"""Ways to run many specifications: in this process, in some of several, or by Ray's workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.study.runners import local
from wanlab.study.runners.groups import PairGroup, Shard, stamp, stamps

RUNNERS = ("local", "ray")
WHOLE = Shard()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of a job."""

    runs: int
    """Those of the shard."""
    failed: list[Path]
    """The places of runs that failed."""
    awaited: int
    """Runs that other shards have still to make."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does a job. Raises UsageError for a runner that there is not."""

    runner: str = "local"
    address: str | None = None
    """Of the Ray cluster; None for one of this machine alone."""
    shard: Shard = WHOLE

    def __post_init__(self) -> None:
        if self.runner not in RUNNERS:
            raise UsageError(f"--runner '{self.runner[:40]}' is unknown", suggest(self.runner, RUNNERS))
        if self.address is not None and self.runner != "ray":
            raise UsageError("--ray-address is for --runner ray", "add --runner ray")

    def run(
        self,
        groups: Sequence[PairGroup],
        *,
        force: bool = False,
        gif: bool = False,
        watcher: local.Watcher | None = None,
    ) -> Outcome:
        """Run every group, or those of the shard. What another process has claimed is waited for.

        What cannot be done fails before a model is loaded. Raises UsageError and WanlabError.
        """
        watcher = watcher or local.Watcher()
        before = stamps(groups)
        own = self.own(groups)
        if self.shard.source and len(own) < len(groups):
            which = f"shard {self.shard} by {self.shard.source}: {len(own)} of {len(groups)} prompts and seeds"
            watcher.say(f"note: {which}; --shard 1/1 takes all")
        failed: list[Path] = []
        if own and self.runner == "ray":
            from wanlab.study.runners.ray import run_groups

            failed = run_groups(own, force=force, gif=gif, watcher=watcher, address=self.address)
        elif own:
            failed = local.run_groups(own, force=force, gif=gif, watcher=watcher)
        mine = {place for group in own for _, place in group.runs}
        others = [place for place in before if place not in mine]
        absent = sum(stamp(p) is None or (force and stamp(p) == before[p]) for p in others)
        return Outcome(runs=len(mine), failed=failed, awaited=absent)

    def own(self, groups: Sequence[PairGroup]) -> list[PairGroup]:
        """The groups of the shard. Variables that nobody gave as an option do not divide a single one."""
        return list(groups) if self.shard.source and len(groups) == 1 else self.shard.of(groups)


HERE = Workers()
