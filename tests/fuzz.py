"""Mutated files: whatever the bytes, a reader gives a result or one WanlabError."""

from __future__ import annotations

import random
from pathlib import Path

from wanlab.errors import WanlabError
from wanlab.runfile import Run, RunWriter, verify
from wanlab.runfile.shards import load_shard, read_manifest, shapes_in
from wanlab.video import read_mp4


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, a piece cut out or doubled, or the end cut off."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randrange(len(out)), chance.randint(1, 16)
        kind = chance.randrange(6)
        if kind == 0 and len(out) > 64:
            del out[at : at + length]
        elif kind == 1:
            out[at:at] = out[at : at + length]
        elif kind == 2 and len(out) > 64 and chance.random() < 0.2:
            del out[max(64, at) :]
        else:
            out[at : at + 1] = bytes([chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])])
    return bytes(out)


def open_run(path: Path) -> None:
    with Run(path) as run:
        for data in run.data.values():
            repr(data)
    verify(path)


def open_shard(path: Path) -> None:
    shapes_in(path)
    load_shard(path)


def open_manifest(path: Path) -> None:
    manifest = read_manifest(path.parent)
    if manifest is not None:
        RunWriter.resume_point(path.parent.with_suffix(""), manifest["digest"])


def open_video(path: Path) -> None:
    with read_mp4(path) as (_, frames):
        for _ in frames:
            pass


READERS = {"run": open_run, "shard": open_shard, "manifest": open_manifest, "video": open_video}


def fuzz(kind: str, sample: bytes, path: Path, count: int, seed: int = 0) -> int:
    """Open `count` mutants of a sample, written to `path`; returns how many were refused."""
    refused = 0
    for k in range(count):
        path.write_bytes(mutate(sample, random.Random(f"{seed} {k}")))
        try:
            READERS[kind](path)
        except WanlabError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind} mutant {k} of seed {seed} is no WanlabError") from error
    return refused
