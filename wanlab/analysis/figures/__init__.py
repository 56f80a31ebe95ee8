"""Figures, as PNG files, drawn on matplotlib's own canvas: no window, no backend."""

import os

# matplotlib refuses at import what notebooks put there where their backend is not installed. None is used here.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib  # noqa: F401
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend

from wanlab.analysis.figures.guidance import guidance_figure  # noqa: E402
from wanlab.analysis.figures.sheet import contact_sheet  # noqa: E402
from wanlab.analysis.figures.style import HIGH, INK, LOW, QUIET, save, shorten  # noqa: E402
from wanlab.analysis.figures.tokens import token_film  # noqa: E402

__all__ = ["HIGH", "INK", "LOW", "QUIET", "contact_sheet", "guidance_figure", "save", "shorten", "token_film"]
