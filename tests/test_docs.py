"""The documentation names files that exist, and its site loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
)
FILE = re.compile(r"(?<![\w/.])(?:wanlab|examples|tests|docs|benchmarks|training)/[\w./-]*\w/?(?![\w*{<])")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    names = set(FILE.findall((ROOT / page).read_text(encoding="utf-8")))
    assert {name for name in names if not (ROOT / name).exists()} == set()


NAMING = (
    *("README.md", "CONTRIBUTING.md", "RELEASING.md"),
    *(f"docs/{name}.md" for name in ("architecture", "compare", "extending", "methods", "models", "runfile")),
)


@pytest.mark.parametrize("page", NAMING)
def test_names_are_found_at_all(page: str) -> None:
    assert FILE.findall((ROOT / page).read_text(encoding="utf-8"))


def test_links_are_found_at_all() -> None:
    assert len(set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))) > 5


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    links = set(LINK.findall((ROOT / page).read_text(encoding="utf-8")))
    assert {link for link in links if not ((ROOT / page).parent / link).exists()} == set()


def test_extending_shows_the_examples_that_the_tests_run() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = set(re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE))
    assert {"examples/skip_every_other.py", "examples/first_block_cache.py", "examples/edge_error.py"} <= shown
    assert {name for name in shown if not (ROOT / name).is_file()} == set()


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name in listed if not (ROOT / name).is_file()} == set()
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} <= listed


def test_the_site_loads_nothing_from_elsewhere() -> None:
    site = ROOT / "site"
    if not site.is_dir():
        pytest.skip("no site: make docs")
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 5
    loaded = {url for text in pages.values() for tag in re.findall(r"<[^>]+>", text) for url in LOADED.findall(tag)}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert loaded | {url for text in styles for url in re.findall(r"url\([\"']?((?:https?:)?//[^)]+)\)", text)} == set()
