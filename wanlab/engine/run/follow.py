"""What every rank but the first does: take part in the runs that rank 0 orders, and write nothing."""

from __future__ import annotations

import os
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from wanlab.engine.model import loading
from wanlab.engine.ranks import Ranks
from wanlab.engine.ranks.lifeline import Line
from wanlab.engine.run.execute import Models, Running
from wanlab.engine.run.forecast import forecast
from wanlab.errors import WanlabError
from wanlab.spec import RunSpec

GRACE = 1.0  # seconds in which rank 0 says an error itself, if it has the same


def follow(ranks: Ranks) -> NoReturn:
    """Obey rank 0 until it ends, which ends this process."""
    warnings.simplefilter("ignore")
    models = Models()
    try:
        while True:
            order, content = ranks.hear()
            if order == "run":
                take_part(RunSpec.from_json(content), models, ranks)
    except Exception as error:
        time.sleep(GRACE)
        said = f"{error.message} ({error.hint})" if isinstance(error, WanlabError) else _where(error)
        if isinstance(ranks.lifeline, Line):
            ranks.lifeline.fail(said)
    os._exit(1)


def take_part(spec: RunSpec, models: Models, ranks: Ranks) -> None:
    """One run of a resolved spec, in lockstep with rank 0."""
    checkpoint = loading.describe(spec.model, spec.revision)
    run = Running(
        spec=spec,
        asked=spec,
        out=Path(),
        forecast=forecast(spec, checkpoint),
        progress=lambda _: None,
        force=False,
        ranks=ranks,
    )
    run.load(checkpoint, models)
    run.encode()
    order, content = ranks.hear()
    if order == "sample":
        start, left, run.warm = content  # rank 0's: it runs other things by itself, and what warms up is done together
        x, steps = run.steps(start, left)
        for record in steps:
            x = record.x_next
        order, content = ranks.hear()
    if order == "decode":
        run.decode(x)


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({Path(frame.filename).name}, line {frame.lineno})"
