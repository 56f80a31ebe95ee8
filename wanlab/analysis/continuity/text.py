"""What the numbers say, in sentences."""

from __future__ import annotations

import math

import numpy as np

from wanlab.analysis.continuity.groups import Group
from wanlab.analysis.continuity.spaces import Floats
from wanlab.analysis.continuity.switch import change_at_switch
from wanlab.analysis.continuity.theory import INDEPENDENT


def reading(g: Group) -> list[str]:
    """What the numbers of one group say, in sentences; only what they can say."""
    said = []
    c, x_t, s = g.first, g.curve("x_t"), g.first.switch
    share, rho, residual = g.theory("noise_share"), g.theory("rho"), g.theory("residual") / g.theory("expected")
    if np.isfinite(x_t[[0, -1]]).all():
        line = f"Neighbouring latent frames of x_t differ by {x_t[0]:#.3g} (mse) at step 1 and by {x_t[-1]:#.3g}"
        line += f" at step {c.steps}"
        known = s is not None and np.isfinite(share[s])
        said.append(line + (f"; at the expert switch {share[s]:.1%} of that difference is noise." if known else "."))
    if np.isfinite(rho).any():
        said.append(_noise(g, rho))
    if np.isfinite(residual).any():
        k = int(np.nanargmax(np.abs(residual)))
        line = f"Independent noise and the final latent explain x_t to within {abs(residual[k]):.1%}"
        parts = [g.theory(n)[k] / g.theory("expected")[k] for n in ("signal", "noise", "cross")]
        if np.isfinite(parts).all():
            line += f"; the rest at step {k + 1} is x0_pred {parts[0]:+.1%}, eps_pred {parts[1]:+.1%}"
            line += f", both together {parts[2]:+.1%}"
        said.append(line + ".")
    if s is not None:
        jumps = [change_at_switch(r) for r in g.runs]
        told = []
        for name in ("x_t", "x0_pred"):
            if g.has(name):
                own, expected = (float(np.mean([j[name]["mse"][w] for j in jumps])) for w in ("jump", "expected_jump"))
                if math.isfinite(own) and math.isfinite(expected):
                    told.append(f"of {name} by {own:+.3g} (the schedule alone: {expected:+.3g})")
        if told:
            said.append(f"From step {s} to {s + 1}, across the expert switch, the mse changes: {', '.join(told)}.")
    told = []
    for at in zip(*(r.experts for r in g.runs), strict=False):
        cosine, apart = (float(np.mean([getattr(o, w) for o in at])) for w in ("cosine", "difference"))
        if math.isfinite(cosine):
            told.append(
                f"at step {at[0].step + 1} the {at[0].other}-noise expert's is {apart:.0%} away (cosine {cosine:.4f})"
            )
    if told:
        said.append(f"Of the velocity that was used, {' and '.join(told)}.")
    after, never = g.recovered
    if after or never:
        said.append(_recovered(g, after, never))
    return said


def _noise(g: Group, rho: Floats) -> str:
    """How far from independent the noise of neighbouring frames is, and from when to when."""
    limit = np.maximum(INDEPENDENT, 3 * g.theory("correlation_sd") / math.sqrt(len(g.runs)))
    known = [int(k) for k in np.flatnonzero(np.isfinite(rho))]
    wrong = [k for k in known if abs(rho[k]) > limit[k]]
    noise = "The noise of neighbouring frames is"
    if not wrong:
        where = "at every step" if len(known) == len(rho) else f"at the {len(known)} of {len(rho)} steps that can tell"
        return f"{noise} independent {where}: its fitted correlation ρ is {np.abs(rho[known]).max():.3f} at most."
    most = max(wrong, key=lambda k: abs(rho[k]))
    before = f"independent until step {wrong[0]}, then" if wrong[0] > known[0] else "not independent:"
    back = [k for k in known if k > wrong[-1]]
    after = f", and none is left from step {back[0] + 1} on" if back else ", and it stays as far as can be told"
    return f"{noise} {before} correlated: ρ is {rho[most]:+.2f} at step {most + 1}{after}."


def _recovered(g: Group, after: list[int], never: int) -> str:
    known = [r for r in g.recoveries if r is not None]
    one = known[0]
    of = f"of the {g.first.steps - one.step} steps from step {one.step + 1} on"
    spread = {"seeds": "the baseline's seeds", "pairs": "the baseline's pairs", "runs": "the baselines"}[one.spread]
    what = f"Its curve is {{}}back within the spread of {spread}"
    if one.pairs == "duplicated":
        what = f"Its duplicated frames {{}}differ from their originals as in {spread}"
    if not after:
        runs = f" in any of {never} runs" if never > 1 else ""
        return f"{what.format('not ' if one.pairs == 'all' else 'do not ')} by the end{runs}."
    if len(known) == 1:
        return f"{what.format('')} after {after[0]} {of}."
    some = f"in all {len(known)} runs" if not never else f"in {len(after)} of {len(known)} runs, in the others never"
    median = f"{float(np.median(after)):g} {of} (median; {min(after)} to {max(after)})"
    return f"{what.format('')} after {median} {some}."
