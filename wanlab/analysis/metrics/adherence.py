"""Whether a clip of the embedded world shows what its prompt asks for, by its verifier (wanlab.embedded.verify).

A share is over the pairs that can be judged: runs of a model of that world, whose prompt names shapes in known words.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from wanlab.analysis.metrics import BASELINE, metric
from wanlab.analysis.metrics.clip import Floats
from wanlab.analysis.proportions import corrected, corrected_difference, paired_difference
from wanlab.analysis.stats import Interval, share
from wanlab.embedded import verify, world
from wanlab.runfile import Run

MOST = 2**23  # pixels of a clip that is judged; it is held as a whole, some 20 float32 arrays of it at once
ATTRIBUTES = ("all", *verify.ATTRIBUTES)
NOT_JUDGED = np.full(len(ATTRIBUTES), np.nan)

Values = Callable[[str], Sequence[float]]


def scene_of(prompt: str) -> world.Scene | None:
    """What a prompt asks for; None where the verifier cannot judge it."""
    scene = world.parse(prompt)
    judged = scene.kind == "shapes" and scene.things and not world.unknown_words(prompt)
    return scene if judged else None


def world_of(run: Run) -> world.World | None:
    """The world of the model that made a run; None of another model, or of a world that this wanlab does not have."""
    said = run.attrs.get("world")
    if said is None and run.spec.model == "tiny":  # from before a run file said it
        return world.FIRST
    return world.WORLDS.get(str(said))


def judged(run: Run) -> Floats:
    """Of each of `ATTRIBUTES` whether it is right, 1 or 0; NaN where it is not asked for, or cannot be judged."""
    version = world_of(run)
    scene = scene_of(run.spec.prompt) if version else None
    if version is None or scene is None or "video" not in run or math.prod(run["video"].shape[:3]) > MOST:
        return NOT_JUDGED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of shapes that are hardly there: seen as nothing
        seen = verify.observe(np.asarray(run["video"][...], np.float32) / 255, version)
    verdict = verify.judge(seen, scene)
    answers = [verdict.right, *(getattr(verdict, a) for a in verify.ATTRIBUTES)]
    return np.array([math.nan if a is None else float(a) for a in answers])


def _known(values: Sequence[float], prompts: Sequence[str]) -> tuple[list[float], list[str]]:
    own = [(v, p) for v, p in zip(values, prompts, strict=True) if math.isfinite(v)]
    return [v for v, _ in own], [p for _, p in own]


def _share(attribute: str, name: str, values: Values, prompts: Sequence[str], factor: float | None) -> Interval:
    return corrected(share(*_known(values(name), prompts), factor=factor), verify.ERRORS[attribute])


def _difference(attribute: str, name: str, values: Values, prompts: Sequence[str], factor: float | None) -> Interval:
    return difference(values(name), prompts, attribute, factor)


def difference(
    values: Sequence[float], prompts: Sequence[str], attribute: str = "all", factor: float | None = None
) -> Interval:
    """How much oftener A shows what is asked than B: of each pair 1 where only A does, -1 where only B does, else 0;
    NaN where it cannot be judged."""
    own = paired_difference(*_known(values, prompts), factor=factor)
    return corrected_difference(own, verify.ERRORS[attribute])


def _register(attribute: str) -> None:
    whole = attribute == "all"
    name = "adherence" if whole else f"adherence_{attribute}"
    title = "followed" if whole else f"{attribute} followed"
    k = ATTRIBUTES.index(attribute)

    def right(verdict: Floats) -> float:
        return float(verdict[k])

    def change(figures: Mapping[str, float]) -> float:
        return figures[name] - figures[name + BASELINE]

    of = "all that the prompt asks for" if whole else f"{attribute} as the prompt asks"
    right.__doc__ = f"Share of the clips that show {of}, by the embedded world's verifier."
    change.__doc__ = f"That share ({name}) less the baseline's."
    shown = {"table": "clips", "format": ".3f"}
    metric(
        name,
        needs="verdict",
        title=title,
        better="higher",
        bounds=(0.0, 1.0),
        interval=partial(_share, attribute),
        column=".0%" if whole else "",
        **shown,
    )(right)
    metric(
        f"{name}_change",
        needs="figures",
        title=f"{title}, A - B",
        better="higher",
        bounds=(-1.0, 1.0),
        interval=partial(_difference, attribute),
        column="+.0%" if whole else "",
        **shown,
    )(change)


for _attribute in ATTRIBUTES:
    _register(_attribute)
