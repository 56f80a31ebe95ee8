import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.errors import UsageError
from wanlab.spec import MethodSpec, PolicySpec, RecordSpec, RunSpec, parse_guidance, parse_size


def make(**changes):
    return RunSpec(**({"prompt": "a red ball"} | changes))


def test_json_round_trip():
    spec = make(policies=(PolicySpec.parse("cfg:last=5,keep=cond"),), record=RecordSpec(level="all"), shift=12)
    again = RunSpec.from_json(spec.to_json())
    assert again == spec and again.digest() == spec.digest() and again.to_json() == spec.to_json()
    assert hash(again) == hash(spec)


@given(st.text(min_size=1, max_size=40), st.integers(0, 2**63 - 1), st.floats(0, 100), st.integers(1, 1000))
def test_any_valid_spec_round_trips(prompt, seed, scale, steps):
    try:
        spec = make(prompt=prompt, seed=seed, guidance=(scale, 1.0), steps=steps)
    except UsageError:
        return
    assert RunSpec.from_json(spec.to_json()) == spec


def test_digest_is_of_what_decides_the_result():
    spec = make()
    same = dataclasses.replace(
        spec, memory="swap", record=RecordSpec(level="all", every=3, dtype="float16", probe=True)
    )
    assert same.digest() == spec.digest() and same.to_json() != spec.to_json()
    changes = {
        "prompt": "a blue ball",
        "negative_prompt": "blur",
        "model": "elsewhere",
        "revision": "main",
        "seed": 1,
        "width": 160,
        "height": 96,
        "frames": 17,
        "steps": 21,
        "shift": 3.0,
        "solver": "euler",
        "schedule": "wan",
        "guidance": (4.0, 3.0),
        "batch_cfg": True,
        "policies": (PolicySpec("cfg"),),
        "device": "cpu",
        "dtype": "float32",
        "vae_dtype": "float32",
        "attention": "math",
        "precision": "exact",
        "guider": PolicySpec("cfgzero"),
    }
    assert set(changes) | {"record", "memory", "parallel"} == {f.name for f in dataclasses.fields(RunSpec)}
    digests = {dataclasses.replace(spec, **{k: v}).digest() for k, v in changes.items()}
    assert len(digests | {spec.digest()}) == len(changes) + 1


def test_latent_frames():
    assert [make(frames=n).latent_frames for n in (1, 5, 49, 81)] == [1, 2, 13, 21]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frames": 50}, "use 49 or 53"),
        ({"frames": 0}, "use 1"),
        ({"frames": -7}, "use 1"),
        ({"frames": 4097}, "use 4093"),
        ({"frames": 49.0}, "whole number"),
        ({"width": 150}, "use 144 or 160"),
        ({"height": 481}, "use 480 or 496"),
        ({"height": 0}, "use 16"),
        ({"width": 10**9}, "use 8192"),
        ({"steps": -1}, "use 1 to 1000"),
        ({"steps": 0}, "use 1 to 1000"),
        ({"steps": True}, "whole number"),
        ({"seed": -1}, "out of range"),
        ({"seed": 2**64}, "out of range"),
        ({"shift": 0}, "use 0.01 to 1000"),
        ({"shift": float("nan")}, "use 0.01 to 1000"),
        ({"guidance": (4.0, float("inf"))}, "use 0 to 1000"),
        ({"guidance": (-1.0, 1.0)}, "use 0 to 1000"),
        ({"guidance": (4.0,)}, "LOW,HIGH"),
        ({"solver": "unipcc"}, "did you mean unipc?"),
        ({"schedule": "won"}, "did you mean wan?"),
        ({"schedule": "wan", "solver": "euler"}, "no Euler"),
        ({"dtype": "float8"}, "did you mean float"),
        ({"device": "tpu"}, "use auto, cpu"),
        ({"model": ""}, "use --model tiny"),
        ({"model": "a\x1b[2J"}, "use --model tiny"),
        ({"revision": "a b"}, "name a branch"),
        ({"prompt": ""}, "empty"),
        ({"prompt": " \n"}, "empty"),
        ({"prompt": "&nbsp;"}, "'&nbsp;' is empty"),
        ({"prompt": "&amp;#160; "}, "empty"),
        ({"prompt": "\u200b&zwnj;\ufeff"}, "empty"),
        ({"prompt": "x" * 100_000}, "shorten it"),
        ({"negative_prompt": "x" * 100_000}, "shorten it"),
        ({"prompt": "a\0b"}, "U+0000 at position 1"),
        ({"prompt": "\x1b[31mred"}, "U+001B at position 0"),
        ({"prompt": "a\ud800"}, "U+D800"),
        ({"prompt": 7}, "not text"),
    ],
)
def test_bad_values_name_the_remedy(change, says):
    with pytest.raises(UsageError) as caught:
        make(**change)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 300
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("prompt", ["[bold red]ball[/]", "<script>", "$\\frac{", "{0}", "a\nb\tc", "日本 🎈"])
def test_markup_is_only_text(prompt):
    assert RunSpec.from_json(make(prompt=prompt).to_json()).prompt == prompt


@pytest.mark.parametrize(
    ("record", "says"),
    [({"level": "latent"}, "latents"), ({"every": 0}, "1 to"), ({"dtype": "int8"}, "float"), ({"probe": 1}, "true")],
)
def test_bad_record(record, says):
    with pytest.raises(UsageError, match=says):
        RecordSpec(**record)


def test_covers():
    everything = RecordSpec(level="all", video="float32", probe=True)
    for change in ({}, {"level": "latents"}, {"level": "all", "every": 5}, {"level": "metrics", "dtype": "float16"}):
        assert everything.covers(RecordSpec(**change))
    assert not RecordSpec().covers(RecordSpec(level="latents"))
    assert not RecordSpec(level="all", every=2).covers(RecordSpec(level="all"))
    assert not RecordSpec(level="all").covers(RecordSpec(level="all", dtype="float16"))
    assert not RecordSpec().covers(RecordSpec(probe=True)) and not RecordSpec().covers(RecordSpec(video="float32"))


def test_policy_parse():
    spec = PolicySpec.parse("cfg:last=5, keep=cond,scale=1.5,flag=true")
    assert spec.name == "cfg" and spec.options == {"last": 5, "keep": "cond", "scale": 1.5, "flag": True}
    assert PolicySpec.parse(str(spec)) == spec
    assert PolicySpec.parse("paired") == PolicySpec("paired") and str(PolicySpec("paired")) == "paired"
    with pytest.raises(UsageError) as told:
        PolicySpec.parse("examples/mine.py")
    assert told.value.hint == "add the name that it registers: examples/mine.py:NAME"
    assert PolicySpec("cfg", {"b": 1, "a": 2}) == PolicySpec("cfg", (("a", 2), ("b", 1)))


@pytest.mark.parametrize(
    "text", ["", ":last=5", "cfg:last", "cfg:last=", "cfg:=5", "cfg:a=1,a=2", "CFG", "cfg:a=nan", "c\0"]
)
def test_policy_parse_refuses(text):
    with pytest.raises(UsageError):
        PolicySpec.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"prompt":"a","nonsense":1}',
        '{"prompt":"a","record":{"x":1}}',
        "[" * 100_000,
        '{"prompt":"a","spec_version":3}',
        '{"prompt":"a","policies":[1]}',
        '{"prompt":"a","guidance":7}',
        "{}",
    ],
)
def test_from_json_refuses(text):
    with pytest.raises(UsageError):
        RunSpec.from_json(text)


def test_from_dict_takes_defaults():
    assert RunSpec.from_dict({"prompt": "a"}) == RunSpec(prompt="a")
    assert json.loads(RunSpec(prompt="a").to_json())["guidance"] == [4.0, 4.0]


def test_parse_size_and_guidance():
    assert parse_size("832x480") == parse_size("832*480") == parse_size(" 832 X 480 ") == (832, 480)
    assert parse_guidance("3,4") == (3.0, 4.0) and parse_guidance("5") == (5.0, 5.0)
    for bad in ("832", "x480", "-16x16", "832x481", "1e3x16", "８３２x480"):
        with pytest.raises(UsageError):
            parse_size(bad)
    for bad in ("", "a", "1,2,3", "1,"):
        with pytest.raises(UsageError):
            parse_guidance(bad)


def test_spec_imports_no_torch():
    code = "import sys, wanlab.spec; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_methods_are_read_and_laid_over_a_spec():
    spec = RunSpec(prompt="x", guidance=(3.0, 4.0))
    assert MethodSpec.parse("baseline").apply(spec) == spec
    both = MethodSpec.parse("half:rope=strided + cfg:last=5,keep=cond+guidance=2,6+steps=10+batch_cfg=true")
    made = both.apply(spec)
    assert [str(p) for p in made.policies] == ["half:rope=strided", "cfg:keep=cond,last=5"]
    assert (made.guidance, made.steps, made.batch_cfg) == ((2.0, 6.0), 10, True)
    same = MethodSpec.from_dict(
        "mine",
        {"policies": ["half:rope=strided", "cfg:last=5,keep=cond"], "guidance": [2, 6], "steps": 10, "batch_cfg": True},
    )
    assert same.apply(spec) == made and same.label == "mine"


@pytest.mark.parametrize("text", ["prompt=y", "seed=3", "guidance=", "steps=ten", "cfg:last"])
def test_methods_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError):
        MethodSpec.parse(text).apply(RunSpec(prompt="x"))


@pytest.mark.parametrize(
    "given",
    [
        {"knobs": {"calibration": "\ud800.json"}},
        {"knobs": {"calibration": "a\nb"}},
        {"file": "\udcff.py"},
        {"file": ["a.py"]},
        {"code": "\ud800"},
        {"code": "f" * 63},
        {"code": 1},
    ],
)
def test_what_no_file_can_hold_is_no_policy(given):
    plain = {"prompt": "a ball", "policies": [{"name": "magcache", **given}]}
    with pytest.raises(UsageError):
        RunSpec.from_dict(plain)
    with pytest.raises(UsageError):
        RunSpec.from_json(json.dumps(plain))


def test_an_edit_of_a_file_that_a_knob_names_makes_another_specification(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("{}")
    text = f"magcache:calibration={path}"
    first = RunSpec(prompt="a", policies=(PolicySpec.parse(text),))
    assert first.digest() == RunSpec(prompt="a", policies=(PolicySpec.parse(text),)).digest()
    assert RunSpec.from_json(first.to_json()) == first
    path.write_text("[]")
    assert first.digest() != RunSpec(prompt="a", policies=(PolicySpec.parse(text),)).digest()
    assert "code" not in PolicySpec.parse("magcache:calibration=tiny").to_dict()
    path.unlink()
    assert RunSpec.from_json(first.to_json()) == first  # a run file is read wherever it is
    with pytest.raises(UsageError, match="cannot read"):
        PolicySpec.parse(text)
