"""The tables of docs/validity.md, from numbers by hand; what is sampled is tried where methods are."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("wanlab.engine.calibration")
from benchmarks import validity
from wanlab.engine import calibration


def own(steps: int = 40, switch: int = 26) -> calibration.Calibration:
    """The A14B's own published ratios, as if `tiny` had them."""
    published = calibration.load(validity.A14B)
    assert (published.steps, published.switch) == (steps, switch)
    return published


def test_agreement_by_hand() -> None:
    """1, 2, 3 and 1, 3, 2: ranks differ by 0, 1, 1, so Spearman's is 1 - 6·2/(3·8); means 2, covariance 1/3 of 2/3."""
    found = validity.agreement(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]))
    assert found == pytest.approx({"pearson": 0.5, "spearman": 0.5, "apart": 1, "last": 3, "last_published": 2})


def test_a_model_agrees_with_itself() -> None:
    rows = validity.ratios(own())
    mine = [r for r in rows if r["model"] == validity.A14B]
    assert {(r["branch"], r["part"]) for r in mine} == {
        (b, p) for b in ("cond", "uncond") for p in ("high noise", "low noise", "switch")
    }
    for r in mine:
        if r["part"] == "switch":
            assert r["switch"] == r["switch_published"] == pytest.approx(0.65, abs=0.01)
        else:
            assert (r["pearson"], r["spearman"], r["apart"]) == pytest.approx((1, 1, 0))
    others = {r["part"] for r in rows if r["model"] != validity.A14B}
    assert others == {"all steps but the switch"}


def test_tables_and_figures(tmp_path) -> None:
    validity.draw_ratios(own(), tmp_path / "ratios.png")
    validity.draw_cosines(np.linspace(1, 0.9, 40), np.full(40, 0.01), 26, tmp_path / "cosine.png")
    assert all((tmp_path / f"{n}.png").stat().st_size > 5000 for n in ("ratios", "cosine"))
    loss = {"method": "m", "steps_worth": 22.0, "shown": "30.0 (28.0–32.0)", "equal_steps": 22, "fewer_steps": "31.0"}
    content = {"ratios": validity.ratios(own()), "cosine": [1.0, 0.9]}
    text = validity.markdown(content | {"losses": [loss | {"adherence": "100%", "published": []}]})
    assert "| m | 22.0 | 30.0 (28.0–32.0) | 22: 31.0 | 100% | – |" in text
    assert "| wan2.2-t2v-a14b | cond | high noise | +1.000 | +1.000 | 0.000 |" in text


def test_a_published_ratio_of_the_order() -> None:
    """Caches lose less than halved steps on the real model: that is what `tiny` is held against."""
    assert all(f.psnr > validity.HALVED.psnr for m, (s, fs) in validity.METHODS.items() if "Mag" in m for f in fs)
