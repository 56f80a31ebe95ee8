"""The experiment guide's hypotheses, decided from data, and its figures beside what was measured.

Evidence comes from run files, comparisons and continuity analyses. A claim is a number with a threshold: supported when
its whole 95 % interval lies on the right side, refuted when the whole of it lies on the other, undecided otherwise, and
on fewer than `LEAST` prompts. What an open one needs is said, in prompts and seeds.
"""

from wanlab.analysis.hypotheses.baseline import h3, h4
from wanlab.analysis.hypotheses.evidence import Comparison, Continuity, Evidence, collect, files
from wanlab.analysis.hypotheses.guide import Figure, reproduce, shifted
from wanlab.analysis.hypotheses.methods import h1, h2
from wanlab.analysis.hypotheses.schema import COMPARISON, CONTINUITY
from wanlab.analysis.hypotheses.tokens import h5
from wanlab.analysis.hypotheses.verdict import (
    LEAST,
    PARTLY,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Claim,
    Hypothesis,
    Thresholds,
    decide,
    thresholds,
    whole,
)
from wanlab.analysis.measured import Measured, read_run


def judge(evidence: Evidence, held: Thresholds) -> list[Hypothesis]:
    """H1 to H5. The guide's own method decides; its variants are shown beside it."""
    return [
        whole("H1", "CFG truncation does not affect the final quality.", h1(evidence, held)),
        whole("H2", "Half-frame generation keeps continuity.", h2(evidence, held)),
        whole("H3", "x_t at the expert switch is mostly noise.", h3(evidence, held)),
        whole("H4", "The guidance difference converges over the steps.", h4(evidence, held)),
        whole("H5", "Tokens that change least can be frozen without loss.", h5(evidence, held)),
    ]


__all__ = [
    "COMPARISON",
    "CONTINUITY",
    "LEAST",
    "PARTLY",
    "REFUTED",
    "SUPPORTED",
    "UNDECIDED",
    "Claim",
    "Comparison",
    "Continuity",
    "Evidence",
    "Figure",
    "Hypothesis",
    "Measured",
    "Thresholds",
    "collect",
    "decide",
    "files",
    "judge",
    "read_run",
    "reproduce",
    "shifted",
    "thresholds",
]
