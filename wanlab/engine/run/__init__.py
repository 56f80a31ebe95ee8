"""From a RunSpec to a run file."""

from wanlab.engine.model.fingerprint import fingerprint
from wanlab.engine.ranks import JobError
from wanlab.engine.run.execute import Models, Progress, check_output, decode, execute, initial_noise
from wanlab.engine.run.forecast import Forecast
from wanlab.engine.run.resolve import operations_per_second, plan, resolve, resolved
from wanlab.engine.run.resume import pack, restore, save, unpack

__all__ = [
    "Forecast",
    "JobError",
    "Models",
    "Progress",
    "check_output",
    "decode",
    "execute",
    "fingerprint",
    "initial_noise",
    "operations_per_second",
    "pack",
    "plan",
    "resolve",
    "resolved",
    "restore",
    "save",
    "unpack",
]
