"""Prompts, seeds, names and places, as they are asked for."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.errors import UsageError
from wanlab.spec import PolicySpec, RunSpec
from wanlab.study.requests import (
    Prompt,
    check_names,
    check_place,
    expand,
    known,
    parse_prompts,
    places,
    read_prompts,
    run_name,
)


def texts(text: str) -> list[Any]:
    return [p.settings["prompt"] for p in parse_prompts(text, "p.txt")]


def specs(line: str) -> list[RunSpec]:
    return list(expand(parse_prompts(line, "p.jsonl"), [0], {}))


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\f", "\v", "\x1c", "\x1e"])
def test_only_a_line_feed_ends_a_prompt(separator: str) -> None:
    assert texts(f"a red{separator}ball\r\na blue ball\n") == [f"a red{separator}ball", "a blue ball"]
    assert texts('{"prompt": "a red\u2028ball"}\n') == ["a red\u2028ball"]


def test_an_array_on_one_line_or_many_is_its_items() -> None:
    items = '["a red ball", {"prompt": "a blue ball", "seed": 3}]'
    assert texts(items) == texts(items.replace(", ", ",\n ")) == ["a red ball", "a blue ball"]
    assert [s.seed for s in specs(items)] == [0, 3]


def test_a_prompt_in_brackets_is_a_prompt() -> None:
    assert texts("[slow motion] a ball\na cube\n") == ["[slow motion] a ball", "a cube"]


@pytest.mark.parametrize(
    "bad", ["[]", "[5]", '[{"seed": 3}]', "[[]]", "", " \n\n", '{"seed": 3}', '{"prompt": 1', "{" * 100_000]
)
def test_what_holds_no_prompt_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=r"p\.txt"):
        parse_prompts(bad, "p.txt")


@pytest.mark.parametrize("empty", ["&nbsp;", "&nbsp;&#160;", "&amp;nbsp;", " &emsp; "])
def test_entities_alone_are_no_prompt(empty: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        list(expand(read_prompts([empty], None), [0], {}))
    assert len(list(expand(read_prompts(["a&nbsp;ball"], None), [0], {}))) == 1


@pytest.mark.parametrize(
    "settings",
    [
        '"policy": 5',
        '"policy": [5]',
        '"policy": {"a": 1}',
        '"policies": 5',
        '"policy": null',
        '"seed": []',
        '"seed": [[1]]',
        '"seed": {"a": 1}',
        '"seed": "x"',
        '"seed": ' + "9" * 4000,
        '"steps": ' + "9" * 5000,
        '"shift": 1e999',
        '"shift": NaN',
        '"guidance": [1, 2, 3]',
        '"guidance": {}',
        '"guidance": ["a", "b"]',
        '"guidance": true',
        '"size": 5',
        '"size": null',
        '"record": {}',
        '"stepps": 3',
        '"frames": 50',
        '"model": 5',
        '"device": []',
        '"batch_cfg": "yes"',
        '"negative_prompt": null',
        '"steps": ' + "[" * 100_000,
    ],
)
def test_a_lines_bad_setting_is_one_error_that_names_the_line(settings: str) -> None:
    with pytest.raises(UsageError, match=r"p\.jsonl, line 2") as error:
        specs('{"prompt": "a ball"}\n{"prompt": "a ball", ' + settings + "}")
    assert "\n" not in str(error.value)


def test_a_lines_own_settings_win() -> None:
    (spec,) = specs(
        '{"prompt": "a ball", "policy": ["cfg:last=2", "paired"], "size": "32x16", "guidance": 3, "seed": 8}'
    )
    assert spec.policies == (PolicySpec("cfg", {"last": 2}), PolicySpec("paired"))
    assert ((spec.width, spec.height), spec.guidance, spec.seed) == ((32, 16), (3.0, 3.0), 8)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted({*RunSpec.__dataclass_fields__, "size", "policy"})), json)
def test_any_json_is_a_spec_or_one_error(name: str, value: Any) -> None:
    try:
        for spec in expand([Prompt({"prompt": "a ball"} | {name: value}, "p, line 1")], [0], {}):
            assert isinstance(spec, RunSpec)
    except UsageError as error:
        assert "\n" not in str(error)


@given(st.text())
def test_any_text_is_prompts_or_one_error(text: str) -> None:
    try:
        assert parse_prompts(text, "p")
    except UsageError as error:
        assert "p" in error.message


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        read_prompts([], "-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("a ball\u2028x\n".encode())))
    assert [p.settings["prompt"] for p in read_prompts(["first"], "-")] == ["first", "a ball\u2028x"]


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_names_read_from_the_source_are_those_registered() -> None:
    import dataclasses

    from wanlab.engine import guiders, policies  # noqa: F401 - registers them
    from wanlab.registry import lookup, names

    for kind in ("policy", "guider"):
        assert sorted(known(kind)) == names(kind)
        for name, knobs in known(kind).items():
            if knobs is not None:
                assert {f.name for f in dataclasses.fields(lookup(kind, name)) if f.init} <= set(knobs)
    assert set(known("policy")["cfg"] or ()) == {"last", "high", "keep"}


def test_unknown_names_are_refused() -> None:
    for spec in (
        RunSpec(prompt="x", policies=(PolicySpec("cgf"),)),
        RunSpec(prompt="x", policies=(PolicySpec("cfg", {"lst": 1}),)),
    ):
        with pytest.raises(UsageError, match="did you mean"):
            check_names(spec)
    check_names(RunSpec(prompt="x", policies=(PolicySpec("cfg", {"last": 1}),), model="some/checkpoint"))


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_name_beyond_255_bytes(tmp_path: Path) -> None:
    check_place(tmp_path / ("é" * 123 + ".h5"))  # 246 + 3 + 5 of .part = 254 bytes
    for bad in (tmp_path / ("é" * 124 + ".h5"), tmp_path / ("n" * 256) / "r.h5"):
        with pytest.raises(UsageError, match="too long"):
            check_place(bad)


def test_a_link_to_nothing_and_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    for bad, said in ((tmp_path / "link" / "r.h5", "link to nothing"), (tmp_path / "file" / "d" / "r.h5", "is a file")):
        with pytest.raises(UsageError, match=said):
            check_place(bad)
    (tmp_path / "r.h5").symlink_to(tmp_path / "gone.h5")
    with pytest.raises(UsageError, match="link to nothing"):
        places([RunSpec(prompt="x")], tmp_path / "r.h5")


def test_a_full_place_is_found_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UsageError, match="No space left"):
        places([RunSpec(prompt="x")], tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        check_place(tmp_path / "d" / "r.h5")


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b" / "r.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["R.H5", "r.hdf5"])
def test_other_spellings_of_the_ending_are_refused_with_the_right_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        places([RunSpec(prompt="x")], tmp_path / name)
    assert error.value.hint == f"use {name[0]}.h5"


def test_a_files_name_keeps_the_prompts_letters() -> None:
    assert run_name(RunSpec(prompt="一个红色的球, moving!", seed=3)).startswith("一个红色的球-moving-s3-")
    long = run_name(RunSpec(prompt="球" * 500))
    assert len(long.encode()) < 80 and long.startswith("球")
    assert run_name(RunSpec(prompt="…")).startswith("prompt-s0-")
