"""H5: frozen tokens against tokens drawn by lot at equal cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wanlab.analysis import hypotheses as h


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


def test_the_control_by_lot_counts_and_decides_against_it(tmp_path: Path) -> None:
    verdict, found = claims(compared(tmp_path, prune=pairs(RULE), prune_lot=pairs([m / 2 for m in RULE])))
    assert found["mse, over the control's"].verdict == h.REFUTED
    assert found["psnr"].verdict == h.SUPPORTED and verdict == h.PARTLY


def test_a_control_of_another_cost_decides_nothing(tmp_path: Path) -> None:
    """At 30 pass-equivalents one of 30.7 costs 2.3 % more."""
    path = compared(tmp_path, prune=pairs(RULE), random_tokens=pairs([1.0] * 6, cost=30.7))
    verdict, found = claims(path)
    assert verdict == h.UNDECIDED and found["mse, over the control's"].value.n == 0
    assert "prune:choice=lot" in found["mse, over the control's"].run


def test_loss_refutes_it_whatever_the_control_does(tmp_path: Path) -> None:
    _, found = claims(compared(tmp_path, prune=pairs(RULE, psnr=30.0)))
    assert found["psnr"].verdict == h.REFUTED and found["psnr"].decides


def test_other_policies_are_shown_and_do_not_decide(tmp_path: Path) -> None:
    verdict, found = claims(compared(tmp_path, ras=pairs(RULE), random_tokens=pairs([2 * m for m in RULE])))
    assert verdict == h.UNDECIDED and not any(c.decides for c in found.values())
    assert found["mse, over the control's"].verdict == h.SUPPORTED
