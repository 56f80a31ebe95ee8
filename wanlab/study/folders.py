"""Videos of two folders, run files, films or folders of images, paired by name, or else by prompt and seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wanlab.errors import UsageError, WanlabError
from wanlab.images import frames_in
from wanlab.runfile import Run
from wanlab.spec.paths import VIDEOS, is_run_file

SIDE_BY_SIDE = "side_by_side.mp4"
"""A pair's film in a method's folder."""


@dataclass(frozen=True)
class Match:
    """Two videos of one name, or of one prompt and seed."""

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
    if kinds[0]:  # a method's folder, where `compare` puts films of pairs too
        kinds[1] = [path for path in kinds[1] if path.name != SIDE_BY_SIDE]
    names: dict[str, Path] = {}
    for path in (p for kind in kinds for p in kind):
        names.setdefault(path.name if path.is_dir() else path.stem, path)
    return names


def match(a: Path, b: Path) -> tuple[list[Match], list[str]]:
    """(the videos of two folders that share a name, or else prompt and seed; remarks on those that do not). Raises
    UsageError for none."""
    sides = [videos_in(p) for p in (a, b)]
    for folder, names in zip((a, b), sides, strict=True):
        if not names:
            raise UsageError(f"{folder} holds no videos", "name a folder of run files, films or folders of images")
    shared = [(name, name) for name in sides[1] if name in sides[0]]
    asked = [_by_request({n: p for n, p in own.items() if (n, n) not in shared}) for own in sides]
    shared += [(asked[0][key], name) for key, name in asked[1].items() if key in asked[0]]
    if not shared:
        examples = " and ".join(f"{next(iter(names))} in {folder}" for folder, names in zip((a, b), sides, strict=True))
        raise UsageError(
            f"no video has the same name, or prompt and seed, in {a} and {b}", f"rename them: there is {examples}"
        )
    remarks = []
    for folder, own, paired in ((a, sides[0], [x for x, _ in shared]), (b, sides[1], [y for _, y in shared])):
        if alone := [name for name in own if name not in paired]:
            some = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
            remarks.append(f"{len(alone)} of {len(own)} videos in {folder} have no partner: {some}")
    return [Match(sides[0][x], sides[1][y], *prompt_and_seed(y)) for x, y in shared], remarks


def _by_request(videos: dict[str, Path]) -> dict[tuple[str, int], str]:
    """The names of videos by prompt and seed, a run file's own or the name's; without those that several share."""
    found: dict[tuple[str, int], list[str]] = {}
    for name, path in videos.items():
        try:
            found.setdefault(request_of(path) or prompt_and_seed(name), []).append(name)
        except WanlabError:  # damaged: it has no partner
            continue
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def request_of(path: Path) -> tuple[str, int] | None:
    """A run file's prompt and seed; None of another video. Raises WanlabError for a damaged file."""
    if not is_run_file(path):
        return None
    with Run(path) as run:
        return run.spec.prompt, run.spec.seed


def prompt_and_seed(name: str) -> tuple[str, int]:
    """`a red ball-3` as ("a red ball", 3); a name without an index is a prompt with seed 0."""
    found = re.fullmatch(r"(.+?)-(\d{1,18})", name, re.ASCII | re.DOTALL)
    return (found[1], int(found[2])) if found else (name, 0)
