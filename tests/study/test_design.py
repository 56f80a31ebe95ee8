"""What a comparison runs: sweeps, floors, names and places."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.errors import UsageError
from wanlab.spec import MethodSpec, RunSpec
from wanlab.spec.paths import is_run_file
from wanlab.study.compare import alike
from wanlab.study.design import Variant, arrange, floors_of, is_source, read_methods, slug, suite_prompts, swept

BASE = RunSpec(prompt="a red ball", steps=4, frames=9)


@pytest.mark.parametrize(
    ("base", "sweeps", "says"),
    [
        ("baseline", ["cfg.lst=0:4"], "no knob 'lst'; did you mean last"),
        ("baseline", ["cgf.last=0:4"], "unknown policy 'cgf'"),
        ("baseline", ["cfg.keep=uncond,cnd"], "cfg:keep is 'cnd'"),
        ("baseline", ["cfg.keep=uncond,cond"], "changes nothing"),
        ("baseline", ["cfg.keep=cond"], "changes nothing"),
        ("baseline", ["cfg.last=0"], "changes nothing"),
        ("baseline", ["shift=3,5", "cfg.last=0"], "cfg.last changes nothing"),
        ("cfg:last=3", ["cfg.last=3"], "changes nothing"),
        ("guidance=3", ["guidance=3"], "changes nothing"),
        ("baseline", ["cfg.last=0:3", "cfg.last=3:5"], "twice"),
        ("interval:low=.2+interval:high=.9", ["interval.start=0,.1"], "interval is named 2 times"),
        ("baseline", ["solver=unipc,eular"], "eular"),
        ("baseline", ["guidance=0:100000", "shift=1:100001"], "this sweep has 10,000,000,000 methods"),
        ("baseline", [f"cfg.last=0:{'9' * 5000}"], "is no range"),
        ("baseline", ["guidance=nan:3"], "is no range"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_at_once(base: str, sweeps: list[str], says: str) -> None:
    began = time.process_time()
    with pytest.raises(UsageError) as error:
        swept(MethodSpec.parse(base), sweeps)
    assert says in str(error.value)
    if (
        "keep" not in sweeps[0] and "last=0" not in sweeps[-1]
    ):  # a value of a knob without effect is looked up in the engine
        assert time.process_time() - began < 1


def test_a_knob_has_an_effect_along_with_another() -> None:
    variants = swept(MethodSpec.parse("baseline"), ["cfg.last=0:2", "cfg.keep=uncond,cond"])
    assert [v.method.label for v in variants] == ["baseline", "cfg:keep=uncond,last=1", "cfg:keep=cond,last=1"]


@pytest.mark.parametrize(
    ("baseline", "methods", "same"),
    [
        ("baseline", ["guidance=4"], ["baseline"]),
        ("baseline", ["shift=2", "steps=4"], ["baseline", "baseline"]),  # tiny's own shift, BASE's steps
        ("half", ["half:rope=compact"], ["half"]),
        ("baseline", ["half", "half:rope=compact", "half:rope=strided"], [None, "half", None]),
        ("baseline", ["baseline"], [None]),  # asked for by its name
        ("guidance=3", ["baseline"], [None]),
        ("cfg:last=2+steps=10", ["cfg:last=2"], [None]),
        ("half", ["baseline", "half"], [None, None]),
        ("baseline", ["guidance=3", "guider=cfgzero", "cfg:last=1"], [None] * 3),
    ],
)
def test_a_method_that_is_the_baseline_by_its_defaults_is_said(
    baseline: str, methods: list[str], same: list[str | None], tmp_path: Path
) -> None:
    variants = [Variant(MethodSpec.parse(m)) for m in methods]
    said = alike(arrange([BASE], MethodSpec.parse(baseline), variants, [], tmp_path))
    assert said == [f"{m} is {s} itself, its values are the defaults" for m, s in zip(methods, same, strict=True) if s]


def test_policies_named_twice_stay_in_a_sweep_of_another() -> None:
    variants = swept(MethodSpec.parse("interval:low=.2+interval:high=.9+cfg:last=2"), ["cfg.last=1,2"])
    assert [str(v.method) for v in variants] == [f"interval:low=0.2+interval:high=0.9+cfg:last={k}" for k in (1, 2)]


def test_a_floor_is_the_baseline_computed_another_way() -> None:
    """Half the frames held against half the frames: the floor keeps B's policies and settings."""
    baseline = MethodSpec.parse("half+guidance=3")
    floors = floors_of(baseline, BASE)
    assert [f.method.label for f in floors] == [
        "floor: batch_cfg=true",
        "floor: attention=math",
        "floor: dtype=bfloat16",
    ]
    for floor, change in zip(floors, ({"batch_cfg": True}, {"attention": "math"}, {"dtype": "bfloat16"}), strict=True):
        spec, usual = floor.method.apply(BASE), baseline.apply(BASE)
        differs = {n for n in RunSpec.__dataclass_fields__ if getattr(spec, n) != getattr(usual, n)}
        assert differs == set(change) and all(getattr(spec, n) == v for n, v in change.items())


def test_a_floor_changes_what_the_baseline_sets() -> None:
    (_, _, dtype) = floors_of(MethodSpec.parse("dtype=bfloat16"), BASE)
    assert dtype.method.label == "floor: dtype=float32" and dtype.method.apply(BASE).dtype == "float32"


def test_cut_names_differ() -> None:
    long = "half+cfg:last=5,keep=cond" + "+batch_cfg=true" * 6
    a, b = (slug(f"{long}+shift={n}") for n in (3, 5))
    assert a != b and len(a) <= 80 and len(b) <= 80 and a[:60] == b[:60]
    assert slug("cfg:last=5") == "cfg-last=5"


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=4, unique=True))
def test_every_method_has_a_folder_of_its_own(labels: list[str]) -> None:
    variants = [Variant(MethodSpec(label, (), (("shift", 3.0 + k),))) for k, label in enumerate(labels)]
    design = arrange([BASE], MethodSpec("baseline"), variants, [], Path("out"))
    folders = [design.baseline_runs[0].parent, *(runs[0].parent for runs in design.variant_runs)]
    assert len(set(folders)) == len(folders) and all(f.parent == Path("out") for f in folders)


def test_a_comparisons_name_follows_what_is_compared() -> None:
    def name(method: str, prompt: str = "a red ball") -> str:
        spec = RunSpec(prompt=prompt)
        return arrange([spec], MethodSpec("baseline"), [Variant(MethodSpec.parse(method))], [], Path("out")).name

    assert name("cfg:last=5") == name("cfg:last=5")
    assert len({name("cfg:last=5"), name("cfg:last=4"), name("half"), name("cfg:last=5", "a blue ball")}) == 4


def test_a_file_does_not_change_what_a_method_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("half", "film", "half.mp4", "R.H5", "r.hdf5", "mine.py"):
        Path(name).write_bytes(b"")
    Path("clips").mkdir()
    assert not is_source("half") and not is_source("half+cfg:last=5") and not is_source("guidance=3")
    assert is_source(f".{os.sep}half") and is_source("half.mp4") and is_source("film") and is_source("clips")
    assert not is_source("mine.py")  # a method whose name is missing
    assert is_source("R.H5") and is_source("r.hdf5") and not is_source("R.H5", {"R.H5": MethodSpec("x")})


def test_run_files_by_name() -> None:
    assert [is_run_file(n) for n in ("a/r.h5", "R.H5", "r.hdf5", "r.mp4", "h5", "r.h5.part")] == [True] * 3 + [
        False
    ] * 3


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 1", "[methods.x]\npolicies = 5", "\x00", "[methods.x]\nfoo = 1"],
    ids=["deep", "long", "none", "type", "zero", "setting"],
)
def test_methods_files_that_cannot_be(tmp_path: Path, text: str) -> None:
    file = tmp_path / "methods.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        for method in read_methods(file).values():
            method.apply(BASE)
    assert len(str(error.value)) < 400


def test_swept_methods_are_named_with_all_their_settings():
    """Else those of two sweeps share one folder."""
    for base, label in (("half+steps=7", "half+steps=7+shift="), ("shift=2", "shift=")):
        labels = [v.method.label for v in swept(MethodSpec.parse(base), ["shift=3,5"])]
        assert labels == [f"{label}3", f"{label}5"]


def test_a_method_at_two_costs_is_sampled_once(tmp_path: Path) -> None:
    """Whole steps do not hit every cost: the nearest may be the same for two."""
    twice = [Variant(MethodSpec.parse("cfg:last=2"), {"at_cost": c}) for c in (0.75, 0.74)]
    design = arrange([BASE], MethodSpec("baseline"), twice, [], tmp_path)
    assert design.variant_runs[0] == design.variant_runs[1] and len(design.order) == 2


def test_suites_by_name() -> None:
    assert suite_prompts(None) == suite_prompts("builtin")[:3]
    assert len(set(suite_prompts("builtin") + suite_prompts("held-out"))) == 64
    with pytest.raises(UsageError, match="no suite 'other'; use --suite builtin or --suite held-out"):
        suite_prompts("other")
