"""From a RunSpec to a run file."""

from wanlab.engine.run.execute import (
    Models,
    Progress,
    check_output,
    decode,
    execute,
    fingerprint,
    initial_noise,
    operations_per_second,
    pack,
    plan,
    resolve,
    resolved,
    restore,
    save,
    unpack,
)  # fmt: skip

__all__ = [
    "Models", "Progress", "check_output", "decode", "execute", "fingerprint", "initial_noise", "operations_per_second",
    "pack", "plan", "resolve", "resolved", "restore", "save", "unpack",
]  # fmt: skip
