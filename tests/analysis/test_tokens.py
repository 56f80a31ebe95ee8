"""H5, frozen tokens against tokens drawn by lot at equal cost; and the film of the masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wanlab.analysis import hypotheses as h
from wanlab.analysis.figures.tokens import token_film
from wanlab.errors import WanlabError
from wanlab.runfile import Field, Run, RunWriter
from wanlab.spec import RunSpec
from wanlab.video import read_mp4


def compared(folder: Path, **methods: list[dict[str, Any]]) -> Path:
    """A comparison.json of methods given as NAME=[figures of prompt 0, of prompt 1, …]."""
    content = {
        "format": h.COMPARISON,
        "baseline": "baseline",
        "compared": "tiny",
        "methods": [
            {"label": name, "method": name, "pairs": [{"prompt": f"p{k}", "seed": 0} | f for k, f in enumerate(pairs)]}
            for name, pairs in ((n.replace("_lot", ":choice=lot"), p) for n, p in methods.items())
        ],
    }
    folder.mkdir(exist_ok=True)
    path = folder / "comparison.json"
    path.write_text(json.dumps(content))
    return path


def claims(path: Path) -> tuple[str, dict[str, h.Claim]]:
    (h5,) = (x for x in h.judge(h.collect([path]), h.Thresholds()) if x.name == "H5")
    return h5.verdict, {c.quantity: c for c in h5.claims}


def pairs(mse: list[float], cost: float = 30.0, psnr: float = 40.0) -> list[dict[str, Any]]:
    shown = {"psnr": psnr, "adherence": 1.0, "adherence_baseline": 1.0}
    return [shown | {"mse": m, "pass_equivalents": cost} for m in mse]


RULE = [0.001, 0.002, 0.003, 0.004, 0.002, 0.001]


def test_half_the_control_s_error_at_equal_cost_is_supported(tmp_path: Path) -> None:
    path = compared(tmp_path, prune=pairs(RULE), random_tokens=pairs([2 * m for m in RULE], cost=30.5))
    claim = claims(path)[1]["mse, over the control's"]
    assert claim.verdict == h.SUPPORTED and claim.value.mean == pytest.approx(0.5) and claim.value.n == 6


def test_pairs_without_an_error_count(tmp_path: Path) -> None:
    """Errors of 0 against an error, against 0, and the other way round: ratios of 0, 1 and infinity."""
    path = compared(tmp_path, prune=pairs([0, 0, 1e-3, 1e-3]), random_tokens=pairs([1e-3, 0, 0, 1e-3]))
    value = claims(path)[1]["mse, over the control's"].value
    assert (value.mean, value.n) == (pytest.approx(1.0), 4) and value.low < 1 < value.high


def test_the_control_by_lot_counts_and_decides_against_it(tmp_path: Path) -> None:
    verdict, found = claims(compared(tmp_path, prune=pairs(RULE), prune_lot=pairs([m / 2 for m in RULE])))
    assert found["mse, over the control's"].verdict == h.REFUTED
    assert found["psnr"].verdict == h.SUPPORTED and verdict == h.PARTLY


def test_a_control_of_another_cost_decides_nothing(tmp_path: Path) -> None:
    """At 30 pass-equivalents one of 30.7 costs 2.3 % more."""
    path = compared(tmp_path, prune=pairs(RULE), random_tokens=pairs([1.0] * 6, cost=30.7))
    verdict, found = claims(path)
    assert verdict == h.UNDECIDED and found["mse, over the control's"].value.n == 0
    assert "prune.choice=change,lot" in found["mse, over the control's"].run


def test_loss_refutes_it_whatever_the_control_does(tmp_path: Path) -> None:
    _, found = claims(compared(tmp_path, prune=pairs(RULE, psnr=30.0)))
    assert found["psnr"].verdict == h.REFUTED and found["psnr"].decides


def test_other_policies_are_shown_and_do_not_decide(tmp_path: Path) -> None:
    verdict, found = claims(compared(tmp_path, ras=pairs(RULE), random_tokens=pairs([2 * m for m in RULE])))
    assert verdict == h.UNDECIDED and not any(c.decides for c in found.values())
    assert found["mse, over the control's"].verdict == h.SUPPORTED


# --- the film of the masks --------------------------------------------------------------------------------------------


def test_a_token_is_as_bright_as_it_was_often_computed(tmp_path: Path) -> None:
    """48x16 pixels, 5 frames: three tokens in each of two latent frames. Of three steps one is whole; of the other two
    both compute the first token, one the second, none the third: 1, 1/2, 0 of 255 → 255, 147 (.15 + .85/2), 38. Below
    names of 24 lines all is enlarged six times: 48 pixels are fewer than 256."""
    packed = np.array([[[[0b11100000]]] * 2, [[[0b11000000]]] * 2, [[[0b10000000]]] * 2], np.uint8)
    with Run(masked(tmp_path / "r.h5", packed)) as run:
        film = token_film(run, tmp_path / "film.mp4")
    assert film is not None
    with read_mp4(film) as (meta, frames):
        (first, *_, last) = list(frames)
        assert meta["size"] == (6 * 96, 24 + 6 * 16)
    for frame in (first, last):
        assert [int(frame[24 + 6 * 8, 6 * x].mean()) for x in (8, 24, 40)] == pytest.approx([255] * 3, abs=3)
        assert [int(frame[24 + 6 * 8, 6 * x].mean()) for x in (56, 72, 88)] == pytest.approx([255, 147, 38], abs=4)


def test_no_film_without_masks_or_with_all_tokens(tmp_path: Path) -> None:
    whole = np.full((3, 2, 1, 1), 0b11100000, np.uint8)
    with Run(masked(tmp_path / "a.h5", whole)) as run:
        assert token_film(run, tmp_path / "a.mp4") is None
    with Run(masked(tmp_path / "b.h5", None)) as run:
        assert token_film(run, tmp_path / "b.mp4") is None


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with (
        Run(masked(tmp_path / "a.h5", np.zeros((3, 1, 1, 1), np.uint8))) as run,
        pytest.raises(WanlabError, match="make it again"),
    ):
        token_film(run, tmp_path / "a.mp4")


def masked(path: Path, packed: np.ndarray | None) -> Path:
    """A white clip of 48x16 pixels and 5 frames, with a mask a step."""
    spec = RunSpec(prompt="white", model="tiny", width=48, height=16, frames=5, steps=3)
    fields = [Field("frame_stride", (), "int32")]
    fields += [Field("prune_mask", ("latent_frame", "token_height", "token_width_bytes"), "uint8")] * (
        packed is not None
    )
    with RunWriter(path, spec_json=spec.to_json(), digest=spec.digest(), fields=fields) as writer:
        for k in range(3):
            writer.step(k, {"frame_stride": 1} | ({} if packed is None else {"prune_mask": packed[k]}))
        video = Field("video", ("frame", "height", "width", "rgb"), "uint8")
        return writer.finish({video: np.full((5, 16, 48, 3), 255, np.uint8)})
