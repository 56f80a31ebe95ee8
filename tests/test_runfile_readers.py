"""Other programs open a run file: every dataset, with named dimensions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from wanlab.runfile import Field, Run, RunWriter

DIMS = ("channel", "latent_frame", "latent_height", "latent_width")
FIELDS = [
    Field("sigma", (), "float64", "1", "noise level"),
    Field("mse", (), "float32", "latent^2", "guidance difference"),
    Field("passes", (), "int32"),
    Field("expert", (), "S4"),
    Field("lifted", (), "bool"),
    Field("x_t", DIMS, "float32", "latent", "the latent before the step"),
    Field("v_half", DIMS, "float16", "latent", "velocity"),
    Field("frame_mse", ("pair",), "float32"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readers") / "r.h5"
    attrs = {"packages": {"h5py": "3"}, "prompt": "a \x1b[31m$\\frac{é", "seconds": 0.5, "resumed": True}
    with RunWriter(path, spec_json="{}" + " " * 100_000, digest="d", attrs=attrs, fields=FIELDS) as writer:
        for k in range(3):
            x = np.full((2, 1 + k, 2, 4), k + 1, "f4")
            values = {
                "sigma": 1 - k / 4,
                "expert": "high",
                "lifted": k == 1,
                "x_t": x,
                "frame_mse": np.ones(2) * k,
            }
            writer.step(k, values | ({"mse": 2.5, "passes": 2, "v_half": x} if k else {}))
        video = Field("video", ("frame", "height", "width", "rgb"), "uint8", "1", "the frames")
        latent = Field("latent", DIMS, "float32", "latent", "the final latent")
        text = Field("prompt_sha256", (), "S64")
        writer.finish({video: np.full((5, 8, 8, 3), 9), latent: x, text: "0" * 64})
    return path


def test_h5dump_opens_every_dataset(path: Path) -> None:
    h5dump = shutil.which("h5dump")
    if h5dump is None:
        pytest.skip("h5dump is not installed (Debian: hdf5-tools)")
    made = subprocess.run([h5dump, str(path)], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    found = set(re.findall(r'DATASET "(\w+)" \{', made.stdout))
    with Run(path) as run:
        assert found == set(run.data) | set(run.dims)
    # Every array but the one scalar refers to its dimensions.
    assert made.stdout.count('ATTRIBUTE "DIMENSION_LIST"') == len(FIELDS) + 2


def test_xarray_opens_every_dataset_with_named_dimensions(path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    tree = xarray.open_datatree(path, engine="h5netcdf")
    with tree, Run(path) as run:
        tree.load()
        for name, data in run.data.items():
            opened = tree[f"{data.group}/{name}"]
            assert opened.dims == data.dims
            assert opened.attrs["long_name"] == data.doc
            assert opened.attrs["units"] == data.unit
            if data.dtype.kind == "f":
                np.testing.assert_array_equal(opened.values, data[...])
        assert {d: int(n) for d, n in tree.sizes.items()} == run.dims
        steps = tree["steps"]
        np.testing.assert_array_equal(steps["step"], [0, 1, 2])
        np.testing.assert_array_equal(steps["passes"], [np.nan, 2, 2])  # an integer that a step lacks is NaN here
        np.testing.assert_array_equal(steps["mse"], [np.nan, 2.5, 2.5])
        assert steps["x_t"].sel(step=1).isel(latent_frame=2).isnull().all()  # that step had two frames
        assert steps["x_t"].sel(step=1).isel(latent_frame=1).values.tolist() == [[[2] * 4] * 2] * 2
        assert int(tree["final/video"].mean()) == 9
        assert tree.attrs["prompt"] == "a \x1b[31m$\\frac{é"
        assert tree.attrs["spec_digest"] == "d"
        assert len(tree.attrs["spec_json"]) == 100_002
