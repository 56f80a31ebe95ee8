"""`wanlab report` as its users run it, and its page in a real browser where there is one."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from wanlab.analysis import hypotheses as h
from wanlab.analysis.stats import Interval
from wanlab.cli.app import main
from wanlab.runfile import Reader
from wanlab.study import page
from wanlab.study.report import commands

HOSTILE = "<script>document.title='owned'</script> {{7*7}} [red] </style><img src=x onerror=alert(1)> \" onload=x"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
Told = tuple[int, str, str]


@pytest.fixture
def wanlab(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    def run(*args: object) -> Told:
        with pytest.raises(SystemExit) as stop:
            main(["report", *map(str, args)])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def results(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs and a comparison of a hostile prompt."""
    folder = tmp_path_factory.mktemp("results")
    small = ("--size", "32x16", "--frames", "17", "--steps", "20", "--device", "cpu", "--no-error-analysis")
    with pytest.raises(SystemExit) as stop:
        main(
            ["generate", "--model", str(checkpoint), *small, "--prompt", HOSTILE, "--seed", "0:3", "--out", str(folder)]
        )
    assert not stop.value.code
    for seed, made in enumerate(sorted(folder.glob("*.h5"))):
        made.rename(folder / f"run{seed}.h5")
    pairs = [
        {"prompt": f"{HOSTILE} {k}", "seed": 0, "a": "a", "b": "b", "psnr": 20.0 + k, "mse": 0.01, "ssim": 0.9}
        for k in range(5)
    ]
    method = {
        "label": "cfg_truncated",
        "pairs": pairs,
        "n": 5,
        "verdict": HOSTILE,
        "summary": {"psnr": {"mean": 22.0, "low": 20.0, "high": 24.0}},
    }
    (folder / "comparison.json").write_text(
        json.dumps(
            {
                "format": h.COMPARISON,
                "baseline": "baseline",
                "compared": HOSTILE,
                "methods": [method, method | {"label": "<b>other</b>"}],
            }
        )
    )
    return folder


def test_files_and_terminal(wanlab: Callable[..., Told], results: Path, tmp_path: Path) -> None:
    code, out, _ = wanlab(results, "--out", tmp_path / "r")
    assert code == 0 and out.split() == [str(tmp_path / "r" / f"report.{k}") for k in ("html", "md", "json")]
    code, out, _ = wanlab(results, "--out", tmp_path / "r", "--format", "human")
    assert code == 0 and "refuted" in out and "To decide what is open:" in out and "6.25%" in out
    assert "3 runs, 1 comparison" in out


def test_exports(wanlab: Callable[..., Told], results: Path, tmp_path: Path) -> None:
    def no(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    code, out, _ = wanlab(results, "--out", tmp_path / "r", "--format", "json")
    whole: dict[str, Any] = json.loads(out, parse_constant=no)
    assert code == 0 and [x["name"] for x in whole["hypotheses"]] == ["H1", "H2", "H3", "H4", "H5"]
    psnr = next(c for c in whole["hypotheses"][0]["claims"] if c["quantity"] == "psnr")
    # The mean of 10^-2, 10^-2.1 … 10^-2.4 is .006649: 21.772 dB.
    assert (
        psnr["value"]["mean"] == pytest.approx(21.772, abs=1e-3)
        and psnr["verdict"] == "refuted"
        and psnr["value"]["n"] == 5
    )
    assert json.loads((tmp_path / "r" / "report.json").read_text(), parse_constant=no) == whole
    _, out, _ = wanlab(results, "--out", tmp_path / "r", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {r["hypothesis"] for r in rows} == {"H1", "H2", "H3", "H4", "H5"} and "nan" not in out
    _, out, _ = wanlab(results, "--out", tmp_path / "r", "--format", "md")
    assert out == (tmp_path / "r" / "report.md").read_text() and "| claim |" in out


def test_a_broken_file_among_many(wanlab: Callable[..., Told], results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "in")
    (tmp_path / "in" / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    code, out, err = wanlab(tmp_path / "in", "--out", tmp_path / "r", "--format", "json")
    assert code == 3 and "broken.h5" in err and len(json.loads(out)["runs"]) == 3
    assert "broken.h5" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nowhere",), "there is no nowhere"),
        ((".",), "nothing to report"),
        ((".", "--format", "xml"), "unknown"),
        ((".", "--thresholds", "none.toml"), "there is no file none.toml"),
    ],
)
def test_bad_input(
    wanlab: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = wanlab(*args)
    assert code == 2 and says in err and out == "" and len(err.strip().splitlines()) == 1


def test_the_page_names_nothing_outside_and_escapes_prompts(
    wanlab: Callable[..., Told], results: Path, tmp_path: Path
) -> None:
    wanlab(results, "--out", tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    assert "`" not in (tmp_path / "r" / "report.md").read_text().split("To decide it")[0]
    assert "<script>document.title" not in page and "<img src=x" not in page and "<b>other</b>" not in page
    assert "{{7*7}}" in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", page)
    assert page.count("<script>") == 1 and page.count("<style>") == 1 and "unsafe" not in page
    assert page.count("data:video/mp4") == 3


@pytest.mark.parametrize("target", ["/proc/self/mem", "/dev/zero", "nowhere", "pipe"])
def test_figures_that_cannot_be_read_are_left_out(
    wanlab: Callable[..., Told], results: Path, tmp_path: Path, target: str
) -> None:
    shutil.copytree(results, tmp_path / "in")
    figure = tmp_path / "in" / "pareto.png"
    if target == "pipe":
        os.mkfifo(figure)
    else:
        figure.symlink_to(target)
    code, _, err = wanlab(tmp_path / "in", "--out", tmp_path / "r")
    assert code == 0 and "Traceback" not in err
    assert re.search(r"pareto\.png.*: the figure is left out", err)
    assert "data:image/png" not in (tmp_path / "r" / "report.html").read_text()


def test_sixty_four_runs_make_a_small_page(results: Path) -> None:
    evidence = h.collect([results / "run0.h5"])
    many = h.Evidence(runs=evidence.runs * 64)
    text, _ = page.page(many, h.judge(many, h.Thresholds()), h.reproduce(many))
    assert text.count("<video") == 64 and len(text) < 10 * 2**20


def test_watching(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(results / "run0.h5", folder)
    watching = subprocess.Popen(
        [sys.executable, "-m", "wanlab", "report", str(folder), "--out", str(tmp_path / "r"), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def runs() -> int:
        try:
            return len(json.loads((tmp_path / "r" / "report.json").read_text())["runs"])
        except FileNotFoundError:
            return 0

    def until(n: int) -> None:
        end = time.monotonic() + 60
        while runs() != n:
            assert time.monotonic() < end and watching.poll() is None
            time.sleep(0.1)

    try:
        until(1)
        shutil.copy(results / "run1.h5", folder)
        until(2)
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=30)
        assert watching.returncode == 0 and "1 new, 2 files" in err and "Traceback" not in err
    finally:
        watching.kill()


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install '.[test]'")
    there = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if there is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=there, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(
    wanlab: Callable[..., Told], results: Path, tmp_path: Path, browser: Any, scheme: str
) -> None:
    wanlab(results, "--out", tmp_path / "r")
    page = browser.new_page(color_scheme=scheme, offline=True)
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: said.append(d.message))
    page.goto((tmp_path / "r" / "report.html").as_uri())
    assert page.title() == "wanlab report"  # the prompt's script did not run
    assert page.locator("td", has_text="document.title").count() > 0  # it is there to read
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    # A column sorts, by keyboard too.
    table = page.locator("table.sortable").last
    seeds = "[...document.querySelectorAll('table.sortable')].at(-1).tBodies[0].rows"
    column = table.locator("th", has_text="seed")
    column.locator("button").focus()
    page.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "descending"
    assert page.evaluate(f"[...{seeds}].map(r => r.cells[3].textContent)") == ["2", "1", "0"]
    # All clips go to the same moment.
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState >= 1)")
    page.locator("#scrub").fill("500")
    times = page.evaluate("[...document.querySelectorAll('video')].map(v => v.currentTime / v.duration)")
    assert len(times) == 3 and all(abs(t - 0.5) < 0.01 for t in times)
    page.locator("#play").click()
    assert page.locator("#play").get_attribute("aria-pressed") == "true"
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => !v.paused)")
    page.locator("#play").click()
    page.screenshot(path=tmp_path / "shot.png")
    assert (tmp_path / "shot.png").stat().st_size > 10_000
    assert said == []


@pytest.fixture(scope="module")
def full(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison with two pairs whose runs are there, and a figure."""
    folder = tmp_path_factory.mktemp("full")
    for run in results.glob("*.h5"):
        shutil.copy(run, folder)
    content = json.loads((results / "comparison.json").read_text())
    for method in content["methods"]:
        for k, pair in enumerate(method["pairs"]):
            pair |= {"a": str(folder / f"run{k % 2}.h5"), "b": str(folder / "run2.h5")}
    (folder / "comparison.json").write_text(json.dumps(content))
    Image.new("RGB", (1800, 800), "white").save(folder / "pareto.png")
    with pytest.raises(SystemExit):
        main(["report", str(folder), "--out", str(folder)])
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_a_tablet_a_screen_and_paper(full: Path, browser: Any, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, offline=True)
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(full.as_uri())
    beyond = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
        || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline" && e.clientWidth)
        .map(e => e.tagName + "." + e.className)"""
    for width in (390, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(beyond) == [], width
    page.locator("button.zoom").click()
    assert page.locator("dialog img").bounding_box()["width"] >= 1120  # 70rem: its letters can be read
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.emulate_media(media="print", color_scheme=scheme)
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 within margins of 14 mm, at 96 dots an inch
    assert page.evaluate(beyond) == [] and not page.locator("#player").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(29, 39, 48)"
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(full: Path, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install '.[test]'").Axe()
    page = browser.new_page(color_scheme=scheme, offline=True)
    page.goto(full.as_uri())
    for width in (390, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert [v["id"] for v in axe.run(page).response["violations"]] == [], width
    page.locator("button.zoom").click()
    assert [v["id"] for v in axe.run(page).response["violations"]] == []


def test_a_command_that_another_begins_with_is_not_said() -> None:
    claims = [SimpleNamespace(run=run) for run in ("a", "", "b --x", "a && c", "a && c")]
    assert commands(claims) == ["b --x", "a && c"]  # type: ignore[arg-type]


def shown(content: dict[str, Any], runs: tuple[Any, ...] = ()) -> dict[str, Any]:
    """What the page shows of a comparison."""
    return page._comparison(Path("comparison.json"), content, page.Figures(), page.Clips(runs, Reader()))


def test_a_measure_that_somebody_registered_has_a_column_on_the_page_and_what_nobody_measured_has_none() -> None:
    summary = {"psnr": {"mean": 30.0, "low": 29.0, "high": 31.0}, "edge_error": {"mean": 0.25, "low": 0.2, "high": 0.3}}
    table = shown({"methods": [{"label": "a", "summary": summary, "n": 4, "verdict": "loss"}]})["table"]
    assert table["columns"] == ["method", "PSNR", "edge error", "n", "verdict"]
    assert table["rows"] == [["a", "30.0 dB (29.0–31.0)", "0.25 (0.2–0.3)", 4, "loss"]]
    assert table["numbers"] == ["PSNR", "edge error", "n"]


def test_what_clips_show_has_a_table_of_its_own_on_the_page() -> None:
    summary = {
        "adherence": {"mean": 0.75, "low": 0.5, "high": 0.9},
        "adherence_change": {"mean": -0.25, "low": -0.5, "high": 0.125},
        "motion_ratio": {"mean": 0.8, "low": 0.7, "high": 0.9},
    }
    methods = [{"label": "a", "summary": summary, "n": 4}, {"label": "b", "summary": {}, "n": 4}]
    table = shown({"methods": methods})["clip_table"]
    assert table["columns"] == ["method", "followed", "A - B", "motion"]
    values = ["75.0% (50.0%–90.0%)", "-25.0% (-50.0% to +12.5%)", "0.80x (0.70–0.90)"]
    assert table["rows"] == [["a", *values], ["b", "–", "–", "–"]]
    assert shown({"methods": methods[1:]})["clip_table"]["columns"] == ["method"]


def test_pairs_are_shown_a_beside_b_the_worst_first(results: Path) -> None:
    """Errors of 10 dB, 20 dB, none, and one that is no number, of which nothing is known to be worse."""
    runs = h.collect([results]).runs
    one, two, three = (str(r.path) for r in runs)

    def pair(prompt: str, a: str, **figures: Any) -> dict[str, Any]:
        return {"prompt": prompt, "seed": 7, "a": a, "b": three} | figures

    quick = [
        pair("fair", one, mse=0.01, psnr=20.0, ssim=0.5),
        pair("same", three, mse=0.0, psnr="identical"),
        pair("broken", one),
        pair("elsewhere", "gone/x.h5", mse=0.5, psnr=3.0),
    ]
    slow = [pair("fair", two, mse=0.1, psnr=10.0, ssim=0.99)]
    methods = [{"label": "quick", "pairs": quick}, {"label": "slow", "pairs": slow}]
    content = {"baseline": "full", "thresholds": {"psnr": 39.0, "ssim": None}, "methods": methods}
    pairs = shown(content, runs)["pairs"]
    assert [p["says"] for p in pairs] == ["broken, seed 7", "fair, seed 7", "same, seed 7"]
    broken, fair, same = ([(c["says"], c["beside"]) for c in p["clips"]] for p in pairs)
    assert broken == [("A: quick", ""), ("B: full", "")] and same == [("A: quick", "identical"), ("B: full", "")]
    assert fair == [
        ("A: slow", "10.0 dB, needs 39; 0.990 SSIM, needs 0.98"),
        ("B: full", ""),
        ("A: quick", "20.0 dB, needs 39; 0.500 SSIM, needs 0.98"),
    ]
    assert all(c["data"].startswith("data:video/mp4") for p in pairs for c in p["clips"])
    # A folder that has moved: its runs are known by their own folder's name and theirs.
    for p in quick + slow:
        p |= {"a": "/moved/" + "/".join(Path(p["a"]).parts[-2:]), "b": "/moved/" + "/".join(Path(three).parts[-2:])}
    assert len(shown(content, runs)["pairs"]) == 3
    assert shown(content)["pairs"] == []  # nothing is read but runs that were asked for


def claim(verdict: str, mean: float, low: float, high: float, **more: Any) -> h.Claim:
    words = {"hypothesis": "H1", "says": "alike", "quantity": "psnr", "method": "", "units": "prompts", "sources": ()}
    told = {"relation": ">=", "threshold": 39.0, "verdict": verdict, "value": Interval(mean, low, high, 16)}
    return h.Claim(**(words | told | more))


def test_a_hypothesis_is_answered_in_one_sentence() -> None:
    """The decided ones first: what fails says why it is refuted, whatever else holds."""
    good, bad = claim("supported", 40.0, 39.5, 41.0), claim("refuted", 28.46, 27.0, 30.0, on="tiny")
    mse = claim("refuted", 0.02, 0.015, 0.03, quantity="mse", relation="<=", threshold=0.01, on="tiny")
    wide = claim("not enough data", 38.0, 30.0, 45.0, needs="about 9 prompts would decide it")
    none = claim("not enough data", math.nan, math.nan, math.nan)
    none = dataclasses.replace(none, value=Interval(math.nan, math.nan, math.nan, 0))

    def answer(verdict: str, *claims: h.Claim) -> str:
        return page.answer(h.Hypothesis(name="H1", says="", verdict=verdict, claims=claims))

    assert page.against(bad) == "PSNR 28.5 dB, needs at least 39"
    assert page.against(mse) == "MSE 0.02, needs at most 0.01"
    assert page.against(none) == "PSNR not measured, needs at least 39"
    no = "No on tiny: PSNR 28.5 dB (95 % interval 27 to 30), needs at least 39"
    assert answer("refuted", wide, bad) == no + "."
    assert answer("refuted", bad, mse) == no + ", and 1 more claim fails as well."
    assert answer("supported", good, good, good).endswith("needs at least 39, and 2 more claims hold as well.")
    assert answer("supported", good).startswith("Yes: PSNR 40 dB (95 % interval 39.5 to 41)")
    assert answer("in part", good, bad) == (
        "In part on tiny: it holds for PSNR 40 dB, needs at least 39; not for PSNR 28.5 dB, needs at least 39."
    )
    assert answer("not enough data", none, wide) == (
        "Open: PSNR 38 dB (95 % interval 30 to 45), needs at least 39; about 9 prompts would decide it."
    )
    assert answer("not enough data", none) == "Open: nothing was measured that would tell."
