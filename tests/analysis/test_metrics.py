"""A measure is one function under `@metric`: everything else follows from the registration."""

import csv
import io
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from tests.analysis.test_compare import write
from wanlab.analysis import metrics, table
from wanlab.analysis.compare import Comparison, Result, failures, measure, parse_condition, parse_losses
from wanlab.analysis.metrics import metric
from wanlab.errors import UsageError
from wanlab.study.text import comma_separated

HERE = Path(__file__).parents[2]
EXAMPLE = HERE / "examples" / "edge_error.py"


def halves(path, bright):
    """A clip of 13 frames, .25 on the left and `bright` on the right."""
    value = np.full((1, 1, 16, 1), 0.25)
    value[:, :, 8:] = bright
    return write(path, value=value)


def test_a_measure_of_a_file_shows_up_everywhere(tmp_path):
    """An edge of height h between columns 7 and 8: the Sobel operator gives h across it in both columns (the weights 1,
    2, 1 over 4 along it add up to 1) and 0 along it; the magnitude is the root mean square of the two, h/√2. Edges
    of .5 and .25 differ by .25/√2 in 2 of 16 columns."""
    a, b = halves(tmp_path / "a.h5", 0.75), halves(tmp_path / "b.h5", 0.5)
    pair = measure(a, b, metrics=[str(EXAMPLE)])
    expected = 0.25 / math.sqrt(2) * 2 / 16
    assert pair.figures["edge_error"] == pytest.approx(expected, rel=1e-5)
    comparison = Comparison(baseline="b", results=(Result(label="A", pairs=(pair,) * 4),))
    (row,) = table.rows(comparison)
    assert row["edge error"] == f"{expected:.4f}"
    (flat,) = table.flat(comparison)
    assert flat["edge_error"] == pytest.approx(expected, rel=1e-5) and "edge_error_low" in flat
    assert "edge_error" in next(csv.reader(io.StringIO(comma_separated(table.pairs(comparison)))))
    assert "edge error" in table.report(comparison, "", [])
    plain = comparison.to_dict()["methods"][0]
    assert plain["summary"]["edge_error"]["mean"] == plain["pairs"][0]["edge_error"] == pair.figures["edge_error"]
    assert failures(comparison.results, [parse_condition("edge_error>0.001")])
    assert table.answer(comparison, parse_losses(["edge_error=0.1"]))
    assert "edge_error" in metrics.schema()
    assert "| `edge_error` | Mean absolute difference of the Sobel edges, in grey." in metrics.table()


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 16  # one function, one registration


def test_every_need(tmp_path):
    """What each kind of function is given, and how its values are put together: sizes of what it saw."""
    given = {}

    def note(name, value):
        def function(*args):
            given.setdefault(name, []).append(args)
            return value(*args)

        return function

    own = [
        metric("t_pair", needs="frame pair", reduce="max")(note("t_pair", lambda x, y: x.max() - y.max())),
        metric("t_clip", needs="clip", bounds=(0, math.inf))(note("t_clip", lambda x, y: 1.5)),
        metric("t_both", needs="pair")(note("t_both", lambda a, b: a.frames + b.frames)),
        metric("t_run", needs="run")(note("t_run", lambda cost: cost.passes)),
        metric("t_runs", needs="runs")(note("t_runs", lambda a, b: a.steps + b.steps)),
        metric("t_made", needs="figures")(note("t_made", lambda f: f["t_both"] + f["no such figure"])),
    ]
    try:
        f = measure(write(tmp_path / "a.h5", value=0.75), write(tmp_path / "b.h5", passes=(2, 2, 1, 1))).figures
    finally:
        from wanlab import registry

        for m in own:
            del registry._known["metric"][m.name]
    assert (f["t_pair"], f["t_both"], f["t_runs"]) == (0.25, 26, 8)
    assert (f["t_run"], f["t_run_baseline"], f["t_clip"], f["t_clip_baseline"]) == (8, 6, 1.5, 1.5)
    assert math.isnan(f["t_made"])
    assert len(given["t_pair"]) == 13 and given["t_pair"][0][0].shape == (16, 16, 3)
    assert len(given["t_clip"]) == 2 * 12


def test_values_that_a_figure_cannot_have_are_no_values():
    ssim, psnr, mse = metrics.get("ssim"), metrics.get("psnr"), metrics.get("mse")
    assert (psnr.plain(math.inf), psnr.text(math.inf)) == ("identical", "identical")
    assert math.isnan(mse.plain(math.inf)) and mse.text(math.nan) == "–"
    assert psnr({"mse": 0.0}) == math.inf and math.isnan(psnr({"mse": math.nan})) and math.isnan(psnr({"mse": -1}))
    assert math.isnan(psnr({}))
    assert ssim.bounds == (-1, 1) and metrics.get("difference_baseline").name == "difference"


def test_wrong_registrations_and_names(tmp_path):
    for name in ("Edge", "edge-error", "edge_baseline"):
        with pytest.raises(ValueError, match="no name for a metric"):
            metric(name, needs="pair")
    with pytest.raises(ValueError, match="registered twice"):
        metric("psnr", needs="pair")(lambda a, b: 0)
    with pytest.raises(UsageError, match="did you mean psnr"):
        metrics.get("pnsr")
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match="registers no metric"):
        metrics.load(tmp_path / "none.py")


def test_vmaf_is_measured_where_it_is_asked_for():
    assert "vmaf" not in {m.name for m in metrics.chosen()}
    assert "vmaf" in {m.name for m in metrics.chosen(["vmaf"])}


def test_schema_and_docs_are_those_of_the_registry(tmp_path):
    own = [m for m in metrics.every() if m.function.__module__.startswith("wanlab.")]
    schema = json.loads((HERE / "docs" / "comparison.schema.json").read_text())
    assert schema["$defs"]["summary"]["properties"] == metrics.schema(own), "make it again: metrics.schema()"
    assert metrics.table(own) in (HERE / "docs" / "compare.md").read_text(), "make it again: metrics.table()"
    b = write(tmp_path / "b.h5")
    result = Result(label="A", pairs=(measure(write(tmp_path / "a.h5", value=0.6), b), measure(b, b)) * 2)
    found = Comparison(baseline="b", results=(result,), floors=(result,)).to_dict()
    text = json.dumps(found | {"compared": "", "answer": [], "missed": []}).replace("NaN", "null")
    jsonschema.validate(json.loads(text, parse_constant=pytest.fail), schema)


def test_a_file_is_taken_as_it_is_now(tmp_path):
    """Edited, and back again: in a notebook nothing is started anew."""
    path, code = tmp_path / "mine.py", EXAMPLE.read_text().replace("edge_error", "mine_as_it_is")
    x, y = np.zeros((8, 8, 3)), np.zeros((8, 8, 3))
    x[4:] = 1
    values = []
    for text in (code, code.replace(".mean())", ".mean()) + 1"), code):
        path.write_text(text)
        (own,) = metrics.load(path)
        values.append(metrics.get("mine_as_it_is")(x, y))
        assert own in metrics.chosen([str(path)])
    assert values[0] > 0 and values == [values[0], values[0] + 1, values[0]]
    other = tmp_path / "other.py"
    other.write_text(code)
    for name in ("mine_as_it_is", "psnr"):
        other.write_text(EXAMPLE.read_text().replace("edge_error", name))
        with pytest.raises(UsageError, match=f"there is a metric '{name}' already"):
            metrics.load(other)
