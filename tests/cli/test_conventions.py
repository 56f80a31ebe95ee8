"""`wanlab compare --conventions published`: the field's numbers of a pair, side by side."""

import json

import jsonschema
import numpy as np
import pytest

from tests.test_docs import ROOT
from wanlab.analysis.metrics.conventions import PUBLISHED
from wanlab.cli.app import main
from wanlab.video import write_mp4


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for name in "ab":
        write_mp4(folder / f"{name}.mp4", rng.integers(0, 256, (2, 16, 16, 3), np.uint8), 16)
    return folder


@pytest.fixture
def compare(films, capsys, tmp_path):
    def run(*args):
        with pytest.raises(SystemExit) as stop:
            main(["compare", "--a", f"{films}/a.mp4", "--b", f"{films}/b.mp4", "--out", str(tmp_path), *args])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


def test_side_by_side(compare, tmp_path):
    code, out, err = compare("--conventions", "published", "--format", "md")
    assert code == 0, err
    methods, conventions = out.split("\n\n")
    assert methods.startswith("| method |")
    rows = [line.split(" | ") for line in conventions.splitlines()[2:]]
    assert [r[0].strip("| ") for r in rows] == list(PUBLISHED)
    assert all(float(r[1]) for r in rows)
    assert out in (tmp_path / "comparison.md").read_text()
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert set(PUBLISHED) <= set(content["methods"][0]["summary"])
    jsonschema.validate(content, json.loads((ROOT / "docs" / "comparison.schema.json").read_text()))


def test_a_convention_alone_and_as_a_condition(compare):
    code, out, err = compare("--metric", "psnr.frames", "--fail-if", "psnr.frames<90", "--format", "human")
    assert code == 4 and "psnr.frames" in out and "ssim.ffmpeg" not in out, err


def test_nothing_of_it_without_being_asked(compare):
    _, out, _ = compare("--format", "human")
    assert "convention" not in out


def test_an_unknown_one_is_refused(compare):
    code, _, err = compare("--conventions", "mine")
    assert code == 2 and "write --conventions published" in err
