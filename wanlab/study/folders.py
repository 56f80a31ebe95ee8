"""Videos of two folders, run files, films or folders of images, paired by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wanlab.errors import UsageError
from wanlab.images import frames_in
from wanlab.spec.paths import VIDEOS, is_run_file


@dataclass(frozen=True)
class Match:
    """Two videos of one name."""

    a: Path
    b: Path
    prompt: str
    """Of `PROMPT-INDEX.mp4`; otherwise the whole name. A run file's own replaces it."""
    seed: int
    """The index, 0 without one."""


def is_folder_of_videos(path: Path) -> bool:
    """Whether a path is a folder that is not itself a video in images."""
    return path.is_dir() and (bool(videos_in(path)) or not frames_in(path))


def videos_in(folder: Path) -> dict[str, Path]:
    """The videos directly in a folder by name, without suffix; of several with one name the run file, then the film."""
    kinds: list[list[Path]] = [[], [], []]
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_run_file(path) and path.is_file():
            kinds[0].append(path)
        elif path.suffix.lower() in VIDEOS and path.is_file():
            kinds[1].append(path)
        elif path.is_dir() and not path.name.endswith(".part") and frames_in(path):
            kinds[2].append(path)
    names: dict[str, Path] = {}
    for path in (p for kind in kinds for p in kind):
        names.setdefault(path.name if path.is_dir() else path.stem, path)
    return names


def match(a: Path, b: Path) -> tuple[list[Match], list[str]]:
    """(the videos of two folders that share a name, remarks on those that do not). Raises UsageError for none."""
    sides = [videos_in(p) for p in (a, b)]
    for folder, names in zip((a, b), sides, strict=True):
        if not names:
            raise UsageError(f"{folder} holds no videos", "name a folder of run files, films or folders of images")
    shared = [name for name in sides[1] if name in sides[0]]
    if not shared:
        examples = " and ".join(f"{next(iter(names))} in {folder}" for folder, names in zip((a, b), sides, strict=True))
        raise UsageError(f"no video has the same name in {a} and {b}", f"rename them: there is {examples}")
    remarks = []
    for folder, own, other in ((a, sides[0], sides[1]), (b, sides[1], sides[0])):
        if alone := [name for name in own if name not in other]:
            some = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
            remarks.append(f"{len(alone)} of {len(own)} videos in {folder} have no partner: {some}")
    return [Match(sides[0][n], sides[1][n], *prompt_and_seed(n)) for n in shared], remarks


def prompt_and_seed(name: str) -> tuple[str, int]:
    """`a red ball-3` as ("a red ball", 3); a name without an index is a prompt with seed 0."""
    found = re.fullmatch(r"(.+?)-(\d{1,18})", name, re.ASCII | re.DOTALL)
    return (found[1], int(found[2])) if found else (name, 0)
