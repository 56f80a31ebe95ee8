"""`wanlab inspect`: what is in a run file, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from wanlab.cli import render
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.runfile import Run, verify


def inspect(
    runs: Annotated[list[Path], typer.Argument(help="Run files.", show_default=False)],
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read everything and check every checksum.")
    ] = False,
    format: Annotated[str, typer.Option("--format", help="auto, human, json, csv or md.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> int:
    """Show what a run file holds; with --verify, read all of it and say what is damaged."""
    form = "json" if as_json else format
    if form not in render.FORMATS:
        raise UsageError(f"--format '{render.plain(form, 40)}' is unknown", suggest(form, render.FORMATS))
    damaged = 0
    whole: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for path in runs:
        problems = verify(path) if check else None
        damaged += bool(problems)
        with Run(path) as run:
            arrays = [
                {"name": d.name, "dims": " ".join(d.dims), "shape": "x".join(map(str, d.shape)), "dtype": str(d.dtype), "unit": d.unit,
                 "stored": d.stored_bytes, "what": d.doc}
                for d in run.data.values()
            ]  # fmt: skip
            whole.append({"path": str(path), "format": run.version, "status": run.status, "digest": run.digest, "bytes": path.stat().st_size,
                          "attributes": run.attrs, "data": arrays, "problems": problems})  # fmt: skip
            rows += [{"run": str(path), **a} for a in arrays]
            if form in ("auto", "human"):
                spec = run.spec
                lines = [
                    f"{path}  {render.size(path.stat().st_size)}, format {run.version}, {run.status}, digest {run.digest[:12]}",
                    f"prompt    {render.plain(spec.prompt)}",
                    f"run       {spec.model}, seed {spec.seed}, {spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps, {spec.solver}, "
                    f"guidance {spec.guidance[0]:g},{spec.guidance[1]:g}, {' '.join(map(str, spec.policies)) or 'no policy'}",
                    f"made by   {', '.join(f'{k} {v}' for k, v in run.attrs.get('versions', {}).items())}; {run.attrs.get('device_name', '')}",
                ]
                shown = [{**a, "stored": render.size(float(str(a["stored"])))} for a in arrays]
                render.show(Text("\n".join(lines)), render.table(shown, left=("name", "dims", "dtype", "what")))
                if problems is not None:
                    verdict = (
                        Text("sound: every checksum holds", style="green")
                        if not problems
                        else Text("\n".join(map(render.plain, problems)), style="red")
                    )
                    render.show(verdict)
    if form in ("json", "csv", "md"):
        render.emit(rows, form, whole)
    return 1 if damaged else 0
