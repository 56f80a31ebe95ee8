"""Whatever decides a result is in the fingerprint: an edit of any of it is no longer the finished run."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from wanlab.embedded import tiny_path
from wanlab.engine.model import fingerprint as remembered
from wanlab.engine.model import loading
from wanlab.engine.run import execute, fingerprint
from wanlab.errors import WanlabError
from wanlab.runfile import Run

from .helpers import make_spec


@pytest.fixture
def copy(tmp_path, checkpoint):
    return shutil.copytree(checkpoint, tmp_path / "model", copy_function=shutil.copyfile)


def edit(path, **changes):
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | changes))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def of(path):
    return fingerprint(loading.describe(str(path)))


def test_equal_checkpoints_have_one_wherever_they_lie(copy, checkpoint):
    assert of(copy) == of(checkpoint)
    (copy / "README.md").write_text("not loaded")
    assert of(copy) == of(checkpoint)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model_index.json", {"boundary_ratio": 0.9}),
        ("vae/config.json", {"latents_mean": [0.25] * 16}),
        ("scheduler/scheduler_config.json", {"solver_order": 1}),
        ("transformer_2/config.json", {"eps": 1e-5}),
    ],
)
def test_every_setting_counts(copy, checkpoint, file, changes):
    edit(copy / file, **changes)
    assert of(copy) != of(checkpoint)


@pytest.mark.parametrize("share", [0.3, 0.51, 0.77, 0.999])
@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_every_byte_of_every_tensor_counts(copy, checkpoint, component, share):
    path = copy / component / "diffusion_pytorch_model.safetensors"
    flip(path, int(path.stat().st_size * share))
    assert of(copy) != of(checkpoint)


def test_the_tokenizer_counts(copy, checkpoint):
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"ball"', '"bell"'))
    assert of(copy) != of(checkpoint)


def test_weights_behind_a_symlinked_directory_count(copy, checkpoint, tmp_path):
    shutil.move(copy / "transformer", tmp_path / "elsewhere")
    (copy / "transformer").symlink_to(tmp_path / "elsewhere")
    assert of(copy) == of(checkpoint)
    flip(tmp_path / "elsewhere" / "diffusion_pytorch_model.safetensors", -1)
    assert of(copy) != of(checkpoint)


def test_a_finished_run_of_other_weights_is_sampled_again(copy, tmp_path):
    out, spec = tmp_path / "a.h5", make_spec(copy, steps=2)
    execute(spec, out)
    with Run(out) as run:
        before = run.attrs["weights_fingerprint"]
    edit(copy / "scheduler" / "scheduler_config.json", solver_order=1)
    phases = []
    execute(spec, out, progress=lambda p: phases.append(p.phase))
    assert "sample" in phases and "kept" not in phases
    with Run(out) as run:
        assert run.attrs["weights_fingerprint"] != before


def test_the_second_time_is_quick(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = loading.describe("tiny")
    assert (first := fingerprint(checkpoint)) == fingerprint(checkpoint)
    began = time.process_time()
    assert fingerprint(checkpoint) == first
    assert time.process_time() - began < 0.1
    assert tiny_path().is_dir()


def test_a_tokenizer_without_a_vocabulary_is_refused(copy):
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(WanlabError, match="has no vocabulary"):
        loading.load(str(copy))


@pytest.mark.parametrize("words", [("a", "red", "ball"), ("ball",)])
def test_a_vocabulary_that_lacks_usual_words_is_refused(copy, words):
    path = copy / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    for word in words:
        text = text.replace(f'"{word}":', f'"x{word}x":')
    path.write_text(text)
    with pytest.raises(WanlabError, match="knows not all words"):
        loading.load(str(copy))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("tokenizer.json", {"post_processor": None}, "end mark"),
        ("tokenizer_config.json", {"pad_token": None}, "cannot load"),
        ("tokenizer_config.json", {"unk_token": ""}, "cannot load"),
    ],
)
def test_a_tokenizer_that_does_something_else_is_refused(copy, file, changes, says):
    edit(copy / "tokenizer" / file, **changes)
    with pytest.raises(WanlabError, match=says) as error:
        loading.load(str(copy))
    assert "\n" not in str(error.value)


def test_a_vocabulary_with_a_word_beyond_the_text_encoder_is_refused(copy):
    """Twelve words, of which one has number 12: the text encoder has rows 0 to 11."""
    path = copy / "tokenizer" / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["model"]["vocab"]["ball"] = 12
    path.write_text(json.dumps(plain))
    with pytest.raises(WanlabError, match="has 13 words, the text encoder 12"):
        loading.load(str(copy))


def test_an_edit_that_keeps_size_and_time_counts(copy):
    """As of a copy in place that takes over the times of what it copies; the file has been known for long."""
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    time.sleep(1.1)
    before, times = of(copy), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    assert any(str(path) in key for key in remembered._remembered)
    flip(path, -1)
    os.utime(path, ns=times)
    assert of(copy) != before


def test_two_edits_within_one_tick_count(copy):
    """A digest of what was only just written is not remembered: the next write may leave the same time."""
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    flip(path, -1)
    before = of(copy)
    assert not any(str(path) in key for key in remembered._remembered)
    flip(path, -1)
    assert of(copy) != before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 5}', bytes(200), b"{" * 100_000, None])
def test_a_spoilt_cache_is_no_matter(monkeypatch, tmp_path, copy, content):
    expected = of(copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_remembered", {})
    cache = tmp_path / "cache" / "wanlab" / "fingerprints.json"
    cache.parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(cache)
    else:
        cache.write_bytes(content)
    assert of(copy) == expected
    assert [p.name for p in cache.parent.iterdir()] == ["fingerprints.json"]


def test_no_place_for_a_cache_is_no_matter(monkeypatch, tmp_path, copy):
    expected = of(copy)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(remembered, "_remembered", {})
    assert of(copy) == expected
