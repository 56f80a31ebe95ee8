"""The options that say which process, machine or cluster does a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wanlab.cli import render
from wanlab.cli.grouping import option
from wanlab.study.runners import Outcome, Workers
from wanlab.study.runners.groups import Shard

_PANEL = "Workers"


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Who does the runs."""

    shard: Annotated[
        str | None,
        option(
            "--shard",
            panel=_PANEL,
            help="I/N: only slice I of N of the prompts and seeds, for N processes on one folder.  [default: by a "
            "SLURM array, or RANK and WORLD_SIZE; else all]",
        ),
    ] = None
    runner: Annotated[
        str, option("--runner", panel=_PANEL, help="local: this process; ray: a worker on every GPU (wanlab[ray]).")
    ] = "local"
    ray_address: Annotated[
        str | None,
        option(
            "--ray-address",
            panel=_PANEL,
            help="auto, or HOST:PORT: of a Ray cluster.  [default: one of this machine alone]",
        ),
    ] = None

    def workers(self) -> Workers:
        """The same for a study. Raises UsageError."""
        shard = Shard.of_environment() if self.shard is None else Shard.parse(self.shard)
        return Workers(runner=self.runner, address=self.ray_address, shard=shard)


def wait_for_others(outcome: Outcome) -> int:
    """Say that the results have to wait for other shards; the exit code."""
    runs = f"{outcome.awaited} runs are" if outcome.awaited > 1 else "1 run is"
    render.say(f"this shard is done, {runs} still to come: the last shard, or the command with --shard 1/1, concludes")
    return 3 if outcome.failed else 0
