"""`wanlab inspect`: what is in a run file, and whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from wanlab.cli import render
from wanlab.cli.grouping import with_options
from wanlab.cli.options import Form
from wanlab.errors import WanlabError
from wanlab.files import check_regular
from wanlab.spec import PolicySpec
from wanlab.study.text import plain

MEMORY = 2**30  # bytes and …
SECONDS = 60  # … seconds that reading a file of unknown origin may take
WIDE = 120  # columns that the whole table needs


@with_options
def inspect(
    runs: Annotated[list[Path], typer.Argument(help="Run files.", show_default=False)],
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read everything and check every checksum.")
    ] = False,
    untrusted: Annotated[
        bool,
        typer.Option(
            "--untrusted",
            help=f"Read each file in a process of its own: {MEMORY // 2**30} GiB of memory, {SECONDS} s at most.",
        ),
    ] = False,
    *,
    form: Form,
) -> int:
    """Show what a run file holds; with --verify, read all of it and say what is damaged."""
    shown_as = form.choose()
    contents: list[dict[str, Any]] = []
    bad = 0
    for path in runs:
        try:
            if not Path(f"{path}.part").exists():  # of an unfinished run more is known
                check_regular(path)
            from wanlab import runfile  # numpy and h5py: after what is wrong without them

            content = (
                runfile.read_in_child(path, MEMORY, SECONDS, check=check) if untrusted else runfile.summary(path, check)
            )
        except WanlabError as error:
            if len(runs) == 1:
                raise
            bad += 1
            render.complain(error.message if str(path) in error.message else f"{path}: {error.message}", error.hint)
            continue
        bad += bool(content["problems"])
        contents.append(content)
        if shown_as in ("human", "paths"):
            _show(content)
    if shown_as in render.DATA:
        rows = [{"run": c["path"], **array} for c in contents for array in c["data"]]
        render.emit(rows, shown_as, contents)
    return 0 if not bad else 1 if bad == len(runs) else 3


def _show(content: Mapping[str, Any]) -> None:
    from rich.text import Text

    spec, attributes = content["spec"], content["attributes"]
    versions = attributes.get("versions")
    made_by = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else "unknown"
    lines = [
        f"{content['path']}  {render.size(content['bytes'])}, format {content['format']}, {content['status']}, "
        f"digest {str(content['digest'])[:12]}",
        f"prompt    {plain(spec.get('prompt', 'unknown'))}",
        f"run       {_described(spec)}",
        f"made by   {made_by}; {attributes.get('device_name', '')}",
    ]
    narrow = render.output().width < WIDE
    arrays = [
        {k: render.size(v) if k == "stored" else v for k, v in a.items() if not (narrow and k in ("dims", "unit"))}
        for a in content["data"]
    ]
    render.show(
        Text("\n".join(line[:10] + plain(line[10:], 600) if k else plain(line, 4000) for k, line in enumerate(lines))),
        render.table(arrays, left=("name", "dims", "dtype", "what")),
    )
    problems = content["problems"]
    if problems:
        render.show(Text("\n".join(map(plain, problems)), style="red"))
    elif problems is not None:
        render.show(Text("sound: every checksum holds", style="green"))


def _described(spec: Mapping[str, Any]) -> str:
    """A run in a line, from its specification as the file has it: another version may have written it."""
    known = {k: spec.get(k, "unknown") for k in ("model", "seed", "width", "height", "frames", "steps", "solver")}
    guidance, policies = spec.get("guidance"), spec.get("policies")
    scales = ",".join(map(str, guidance)) if isinstance(guidance, list) else "unknown"
    names = [_typed(p) for p in policies if isinstance(p, dict)] if isinstance(policies, list) else []
    guider = spec.get("guider")
    if isinstance(guider, dict) and guider.get("name", "cfg") != "cfg":
        names.append(f"guider={_typed(guider)}")
    said = "{model}, seed {seed}, {width}x{height}, {frames} frames, {steps} steps, {solver}".format(**known)
    return f"{said}, guidance {scales}, {' '.join(names) or 'no policy'}"


def _typed(policy: Mapping[str, Any]) -> str:
    """A policy or guider as it is given on the command line; its name alone where it is none of this version."""
    try:
        file = Path(policy.get("file") or "").name
        return str(PolicySpec.from_dict({**policy, "file": file}))
    except (WanlabError, KeyError, TypeError, ValueError):
        return str(policy.get("name"))
