"""Text from elsewhere on a terminal, in CSV and in Markdown."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.cli import render
from wanlab.study.text import comma_separated, csv_cell, finite, markdown, md_cell, plain, printable

ATTACKS = (
    "\x1b[2J",
    "\x9b31m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\",
    "a\rb",
    "a\nb",
    "a\u2028b",
    "\u202eabc",
    "\x00",
    "\ud800",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_reaches_the_terminal_that_it_obeys(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.say(attack)
    render.complain(attack, attack)
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.replace("\n", "").isprintable()
    render.show(render.table([{attack: attack}], title=attack, caption=attack, left=(attack,)))
    assert capsys.readouterr().out.replace("\n", "").isprintable()


@given(st.text())
def test_printable_text_is_one_line_of_the_same_length(text: str) -> None:
    assert printable(text).isprintable() and len(printable(text)) == len(text)
    assert plain(text, 40).isprintable() and len(plain(text, 40)) <= 40


@pytest.mark.parametrize(
    "formula", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")']
)
def test_a_csv_cell_is_no_formula(formula: str) -> None:
    (_, (cell,)) = csv.reader(io.StringIO(comma_separated([{"x": formula}])))
    assert cell.startswith("'") and cell[1:].strip() == formula.strip()


@pytest.mark.parametrize("number", [-1.5, -3, 0, True, None, "-2.5", "+1e-3", "-inf"])
def test_a_number_stays_a_number_in_csv(number: object) -> None:
    assert csv_cell(number) == number


def test_csv_has_every_rows_columns_and_blanks() -> None:
    assert comma_separated([{"a": 1}, {"b": "x,y"}]) == 'a,b\n1,\n,"x,y"\n'
    assert comma_separated([]) == "\n"


@given(st.text())
def test_a_markdown_cell_is_neither_html_nor_a_link_nor_two_cells(text: str) -> None:
    cell = md_cell(text)
    assert "<" not in cell and ">" not in cell and "\n" not in cell
    bare = cell.replace("\\\\", "")
    assert all(bare[k - 1] == "\\" for k, c in enumerate(bare) if c in "|[]`*")


def test_a_markdown_table_by_hand() -> None:
    rows = [{"method": "<img src=x onerror=alert(1)>|[a](b)", "psnr": 35.5}]
    assert markdown(rows) == (
        "| method | psnr |\n| --- | --- |\n| &lt;img src=x onerror=alert(1)&gt;\\|\\[a\\](b) | 35.5 |\n"
    )


def test_numbers_that_are_none_are_null_in_json() -> None:
    assert finite({"a": [math.nan, math.inf, 1.5], "b": -math.inf}) == {"a": [None, None, 1.5], "b": None}
