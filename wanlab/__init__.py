"""The laboratory bench for video-diffusion sampling.

    import wanlab

    run = wanlab.generate("a large red circle moving right on a black background", steps=10)
    result = wanlab.compare(a="cfg:last=5", seeds=range(4))
    result.to_pandas()

Everything is imported when it is first used: `import wanlab` alone takes no torch and no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanlab.errors import UsageError, WanlabError
    from wanlab.spec import MethodSpec as Method
    from wanlab.spec import RunSpec
    from wanlab.study.api import calibrate, compare, continuity, generate, open_run, report, what_if

__version__ = "0.1.0.dev0"

__all__ = ["Method", "RunSpec", "UsageError", "WanlabError", "__version__"]
__all__ += ["calibrate", "compare", "continuity", "generate", "open_run", "report", "what_if"]

_PLACES = {
    "Method": ("wanlab.spec", "MethodSpec"),
    "RunSpec": ("wanlab.spec", "RunSpec"),
    "UsageError": ("wanlab.errors", "UsageError"),
    "WanlabError": ("wanlab.errors", "WanlabError"),
    **{
        name: ("wanlab.study.api", name)
        for name in ("calibrate", "compare", "continuity", "generate", "open_run", "report", "what_if")
    },
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'wanlab' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
