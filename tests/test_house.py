"""The bars that keep the code readable: lengths of files and functions, what the loop may know, what examples cost."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "wanlab").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, Function)]


def length(node: Function | ast.For) -> int:
    """Lines from the first decorator, or `def`, to the end; the docstring is part of it."""
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    assert node.end_lineno is not None
    return node.end_lineno - min(decorators, default=node.lineno) + 1


def test_there_is_something_to_measure() -> None:
    assert len(FILES) > 20
    assert len([f for path in FILES for f in functions(path)]) > 200


def test_length_counts_decorators_and_the_docstring() -> None:
    tree = ast.parse('@a\n@b(\n    1,\n)\ndef f(\n    x,\n):\n    """What.\n\n    More."""\n    return x\n')
    assert isinstance(tree.body[0], ast.FunctionDef)
    assert length(tree.body[0]) == 11


def test_no_file_is_longer_than_500_lines() -> None:
    assert {str(p.relative_to(ROOT)): lines(p) for p in FILES if lines(p) > 500} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": length(node)
        for path in FILES
        for node in functions(path)
        if length(node) > 60
    }
    assert long == {}


def test_each_file_of_the_command_line_is_under_300_lines() -> None:
    cli = (ROOT / "wanlab" / "cli").glob("*.py")
    assert {p.name: lines(p) for p in cli if lines(p) >= 300} == {}


def test_the_loop_is_short_and_names_no_method() -> None:
    path = ROOT / "wanlab" / "engine" / "loop.py"
    lengths = [
        length(node)
        for function in functions(path)
        for node in ast.walk(function)
        if isinstance(node, ast.For) and any(isinstance(inner, ast.Yield) for inner in ast.walk(node))
    ]
    assert lengths, "the loop over steps yields each record"
    assert max(lengths) <= 30
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [module for module in imports if "policies" in module] == []
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert texts & registered("policy") == set()


def registered(kind: str) -> set[str]:
    """The names of a kind, from the `@register(kind, name)` lines of the engine, read without importing it."""
    calls = [
        node
        for path in (ROOT / "wanlab" / "engine").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "register"
    ]
    pairs = [tuple(a.value for a in call.args if isinstance(a, ast.Constant)) for call in calls]
    return {str(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == kind}


def test_registered_names_are_read_from_the_source() -> None:
    assert {"cfg", "half", "paired"} <= registered("policy")


@pytest.mark.parametrize(("name", "most"), [("skip_every_other.py", 40), ("first_block_cache.py", 50)])
def test_an_example_of_a_method_stays_short(name: str, most: int) -> None:
    assert lines(ROOT / "examples" / name) <= most


def test_an_example_of_a_metric_is_one_function_with_one_registration() -> None:
    (function,) = functions(ROOT / "examples" / "edge_error.py")
    assert len(function.decorator_list) == 1
