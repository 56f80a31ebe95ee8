"""Continuity in time: how far neighbouring latent frames are from each other at each step, and what explains it.

Spaces: x_t, x0_pred, eps_pred and velocity (latent frames), and the final video (frames in [0,1]). Of neighbours a, b:
mse = mean((a-b)²), cosine = <a,b>/(|a||b|), normalised_l2 = |a-b|/sqrt(|a|²+|b|²). Arrays are [steps, pairs], NaN where
a step has no value or fewer pairs; means and standard deviations are over a step's pairs, the latter the population's
(divided by their number). Neighbours are neighbours among the frames that a step worked on: see `stride`.

Steps are counted from 0 here, from 1 in sentences and in `statistics`.
"""

from wanlab.analysis.continuity.export import FORMAT, plain, statistics
from wanlab.analysis.continuity.groups import Group, group, names
from wanlab.analysis.continuity.measure import Step, measure
from wanlab.analysis.continuity.recovery import Recovery, recovery
from wanlab.analysis.continuity.result import BASELINE, Continuity, OtherExpert
from wanlab.analysis.continuity.runs import analyse, label, labels, settings_of
from wanlab.analysis.continuity.spaces import METRICS, SPACES, Floats, Space, adjacent, dot
from wanlab.analysis.continuity.switch import change_at_switch, noise_back_after
from wanlab.analysis.continuity.text import reading
from wanlab.analysis.continuity.theory import Theory, expectation

__all__ = [
    "BASELINE",
    "FORMAT",
    "METRICS",
    "SPACES",
    "Continuity",
    "Floats",
    "Group",
    "OtherExpert",
    "Recovery",
    "Space",
    "Step",
    "Theory",
    "adjacent",
    "analyse",
    "change_at_switch",
    "dot",
    "expectation",
    "group",
    "label",
    "labels",
    "measure",
    "names",
    "noise_back_after",
    "plain",
    "reading",
    "recovery",
    "settings_of",
    "statistics",
]
