"""How often the verifier is right on rendered clips, and how often it catches a clip with one attribute wrong.

    python -m training.verify_rate --world 2 --clips 300          # a few minutes on one core
    python -m training.verify_rate --world 2 --clips 300 --degraded

Scenes are held-out combinations of things; nothing in training draws from their seed. A wrong one is the same clip
judged against the scene with one attribute of one thing changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from scipy import ndimage

from training import render
from wanlab.embedded import world
from wanlab.embedded.verify import ATTRIBUTES, Observation, judge, observe
from wanlab.embedded.world import Scene, World

SEED = 41_000
# Share of the clips, frames, width, height.
FORMATS = (
    (8, 49, 144, 80),
    (3, 17, 144, 80),
    (1, 81, 144, 80),
    (1, 121, 144, 80),
    (1, 49, 128, 96),
    (1, 17, 96, 96),
    (1, 49, 80, 144),
)


@dataclass
class Rates:
    """Verdicts by attribute: right on what is there, wrong on what is not; and whole clips."""

    right: dict[str, list[bool]] = field(default_factory=lambda: {a: [] for a in ATTRIBUTES})
    caught: dict[str, list[bool]] = field(default_factory=lambda: {a: [] for a in ATTRIBUTES})
    whole: list[bool] = field(default_factory=list)  # of each clip, whether everything is judged right


def draw(
    scene: Scene, seed: int, frames: int = 49, width: int = 144, height: int = 80, version: World = world.FIRST
) -> np.ndarray:
    """One clip of a scene, float32 RGB [T,H,W,3] in [0,1]."""
    rows = render.place_all([scene], seed, width, height, frames, version)
    return render.draw(rows, width, height, frames)[0].permute(1, 2, 3, 0).numpy()


def degrade(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What an autoencoder may do to a clip, and more: blur, noise and a shift of colour."""
    soft = ndimage.gaussian_filter(video, (0, 1, 1, 0))
    worse = soft + rng.normal(0, 0.03, video.shape) + rng.choice([-0.04, 0.04], 3)
    return worse.clip(0, 1).astype(np.float32)


def altered(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene | None:
    """The scene with one attribute of one thing (or the background) changed; None where it has none."""

    def other(options: object, value: str) -> str:
        return str(rng.choice([o for o in options if o != value]))  # type: ignore[attr-defined]

    if attribute == "background":
        return replace(scene, background=other(world.BACKGROUNDS, scene.background))
    k = int(rng.integers(len(scene.things)))
    t = scene.things[k]
    if attribute == "size" and not t.size:
        return None
    if attribute == "direction":
        new = replace(t, motion=other(world.MOTIONS, t.motion))
    else:
        options = {"colour": world.COLOURS, "shape": world.SHAPES, "size": world.SIZES}[attribute]
        new = replace(t, **{attribute: other(options, getattr(t, attribute))})
    return replace(scene, things=(*scene.things[:k], new, *scene.things[k + 1 :]))


def look(count: int, seed: int, worse: bool, version: World) -> Iterator[tuple[Scene, Observation]]:
    """Held-out scenes and what the verifier sees in their clips, over all formats."""
    rng = np.random.default_rng(seed)
    formats = [f for share, *f in FORMATS for _ in range(share)]
    for k, scene in enumerate(islice(world.scenes(seed, held=True, drawn=0, version=version), count)):
        frames, width, height = formats[k % len(formats)]
        video = draw(scene, seed + k, frames, width, height, version)
        yield scene, observe(degrade(video, rng) if worse else video, version)


def rates(count: int, seed: int, worse: bool, version: World, verbose: bool = False) -> Rates:
    """Verdicts on `count` clips, each judged against what is there and against one lie an attribute."""
    rng, out = np.random.default_rng(seed), Rates()
    for k, (scene, seen) in enumerate(look(count, seed, worse, version)):
        verdict = judge(seen, scene)
        out.whole.append(verdict.right)
        if verbose and not verdict.right:
            wrong = [a for a in ATTRIBUTES if getattr(verdict, a) is False]
            saw = [(t.colour, t.shape, t.size, t.motion, round(t.radius, 1)) for t in seen.things]
            print(
                f"clip {k}: {wrong}\n  asked {scene}\n  saw {seen.background} {saw} and {seen.others} more", flush=True
            )
        for a in ATTRIBUTES:
            if (answer := getattr(verdict, a)) is not None:
                out.right[a].append(answer)
            if (lie := altered(scene, a, rng)) is not None:
                out.caught[a].append(getattr(judge(seen, lie), a) is False)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=world.WORLDS, default="2")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--degraded", action="store_true", help="blurred, noisy, shifted in colour")
    parser.add_argument("--verbose", action="store_true", help="say what was seen where a verdict is wrong")
    args = parser.parse_args()
    out = rates(args.clips, args.seed, args.degraded, world.WORLDS[args.world], args.verbose)
    print("| attribute | right on what is there | one attribute wrong: caught |\n| --- | --- | --- |")
    for a in ATTRIBUTES:
        r, c = out.right[a], out.caught[a]
        print(f"| {a} | {sum(r)}/{len(r)} = {np.mean(r):.1%} | {sum(c)}/{len(c)} = {np.mean(c):.1%} |")
    caught = [v for values in out.caught.values() for v in values]
    print(
        f"| all | {sum(out.whole)}/{len(out.whole)} = {np.mean(out.whole):.1%} | "
        f"{sum(caught)}/{len(caught)} = {np.mean(caught):.1%} |"
    )


if __name__ == "__main__":
    main()
