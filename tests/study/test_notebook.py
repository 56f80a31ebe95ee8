"""The notebook of examples/ runs, and shows what it says it shows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="no nbclient: pip install '.[test]'")
    nbclient = pytest.importorskip("nbclient", reason="no nbclient: pip install '.[test]'")
    pytest.importorskip("ipykernel", reason="no ipykernel: pip install '.[test]'")
    kernels = tmp_path / "kernels" / "python3"  # this interpreter, whatever kernels the machine has
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], '
        f'"display_name": "x", "language": "python"}}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    work = tmp_path / "work"
    work.mkdir()
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(work)}})
    client.execute()
    shown: list[Any] = [out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("data:video/mp4;base64," in "".join(data.get("text/html", "")) for data in shown) == 2
    assert sum("image/png" in data for data in shown) == 2
    assert (work / "notebook_outputs" / "report" / "report.html").exists()
