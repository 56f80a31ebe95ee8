"""Where the weights are: every plan computes the same, and brings to the device only what is at work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.engine.helpers import make_spec
from wanlab.engine import run
from wanlab.engine.model import loading as models
from wanlab.engine.model import placement
from wanlab.engine.run.forecast import decoded_at_once
from wanlab.engine.run.resolve import fast_dtype
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run
from wanlab.spec import MEMORY_PLANS

PEAKS = {"resident": 70, "swap": 30, "offload": 12}


@pytest.mark.parametrize(
    ("free", "plan"),
    [(75, "resident"), (74, "swap"), (32, "swap"), (31, "offload"), (1, "offload")],  # 70 / .94 = 74.5, 30 / .94 = 31.9
)
def test_the_fastest_plan_that_fits_is_chosen(free: int, plan: str) -> None:
    assert placement.choose(PEAKS, free) == plan


@pytest.mark.parametrize("plan", MEMORY_PLANS[1:])
@pytest.mark.parametrize("kind", ["checkpoint", "single_checkpoint"])
def test_every_plan_computes_the_same(plan, kind, request, tmp_path):
    spec = make_spec(request.getfixturevalue(kind), steps=4)
    finals, digests = [], []
    for name in ("resident", plan):
        made = run.execute(make_spec(spec.model, steps=4, memory=name, vae_dtype="float32"), tmp_path / f"{name}.h5")
        with Run(made) as finished:
            finals.append((np.asarray(finished["latent"]), np.asarray(finished["video"])))
            digests.append(finished.digest)
            assert finished.spec.memory == name
    assert digests[0] == digests[1]
    assert np.array_equal(finals[0][0], finals[1][0]) and np.array_equal(finals[0][1], finals[1][1])


def test_one_part_at_a_time_is_on_the_device(checkpoint, tmp_path, monkeypatch):
    there, most, order = set(), [], []
    enter, leave = placement.Parked.enter, placement.Parked.leave

    def entering(self):
        there.add(self)
        most.append(len(there))
        order.append(type(self.module).__name__)
        enter(self)

    def leaving(self):
        there.remove(self)
        leave(self)

    monkeypatch.setattr(placement.Parked, "enter", entering)
    monkeypatch.setattr(placement.Parked, "leave", leaving)
    run.execute(make_spec(checkpoint, steps=20, memory="swap"), tmp_path / "r.h5")
    assert max(most) == 1
    assert order == ["UMT5EncoderModel", "WanTransformer3DModel", "WanTransformer3DModel", "AutoencoderKLWan"]
    order.clear()
    run.execute(make_spec(checkpoint, steps=20, memory="offload"), tmp_path / "o.h5")
    assert order == ["UMT5EncoderModel", "AutoencoderKLWan"]  # the experts' blocks come and go by diffusers' own hooks


def test_host_memory_holds_the_same_values_in_as_few_pieces_as_they_fit(monkeypatch):
    """Pieces of 1 KiB here: 500 and 300 bytes share one (the second begins at 512), 600 more need another, 5000 one
    of their own."""
    pieces = []

    def empty(n, **_):
        pieces.append(n)
        return torch.zeros(n, dtype=torch.uint8)

    monkeypatch.setattr(placement.HostMemory, "PIECE", 1024)
    memory = placement.HostMemory()
    monkeypatch.setattr(placement.torch, "empty", empty)
    module = torch.nn.ParameterList(
        torch.nn.Parameter(torch.arange(n, dtype=torch.float32).to(dtype), requires_grad=False)
        for n, dtype in ((125, torch.float32), (150, torch.bfloat16), (300, torch.float16), (1250, torch.float32))
    )
    before = [p.clone() for p in module]
    host = memory.take(module)
    assert pieces == [1024, 1024, 5000]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, host, strict=True))
    assert all(p.data_ptr() == h.data_ptr() for p, h in zip(module, host, strict=True))
    assert host[0].data_ptr() != host[1].data_ptr()


@pytest.mark.parametrize(
    ("plan", "says"), [("resident", "--memory swap"), ("swap", "--memory offload"), ("offload", "use fewer frames")]
)
def test_out_of_memory_names_the_plan_to_try(plan, says, checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models, "load", full)
    with pytest.raises(WanlabError, match=f"under plan {plan}") as caught:
        run.execute(make_spec(checkpoint, memory=plan), tmp_path / "r.h5")
    assert says in caught.value.hint


def test_peaks_by_hand(checkpoint):
    """Two experts; what a plan needs at once, from the bytes of the parts."""
    planned = run.plan(make_spec(checkpoint))
    held = planned.memory_bytes
    expert, text, autoencoder = held["transformer"], held["text_encoder"], held["vae"]
    working, decoding = held["activations"], 5 * held["decoding"]  # all five latent frames: half a GiB holds more
    assert planned.memory_plans["resident"] == text + autoencoder + 2 * expert + max(working, decoding)
    assert planned.memory_plans["swap"] == max(text, expert + working, autoencoder + decoding)
    network = WanTransformer3DModel.from_pretrained(checkpoint / "transformer")
    around = 4 * sum(p.numel() for name, p in network.named_parameters() if not name.startswith("blocks."))
    blocks = 3 * (expert - around) // len(network.blocks)
    assert planned.memory_plans["offload"] == 2 * around + max(text, autoencoder + decoding, blocks + working)
    assert planned.host_plans == {"resident": 0, "swap": 2**30, "offload": 2**30}  # a few MB, in pieces of a GiB
    assert decoded_at_once({"activations": 0, "decoding": 2**30}) == 1
    assert decoded_at_once({"activations": 0, "decoding": 2**28}) == 3
    assert decoded_at_once({"activations": 7 * 2**28, "decoding": 2**28}) == 7
    assert planned.spec.memory == "resident"  # as always on the CPU


def test_an_unknown_plan_is_refused(checkpoint):
    with pytest.raises(UsageError, match="--memory 'swop'"):
        make_spec(checkpoint, memory="swop")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_swapping_holds_less_on_the_gpu(tmp_path):
    peaks = {}
    for plan in MEMORY_PLANS:
        spec = make_spec("tiny", width=144, height=80, frames=17, device="cuda", memory=plan)
        with Run(run.execute(spec, tmp_path / f"{plan}.h5")) as made:
            peaks[plan] = made.attrs["peak_memory_bytes"], np.asarray(made["latent"])
        torch.cuda.empty_cache()
    assert peaks["swap"][0] < peaks["resident"][0]
    assert np.array_equal(peaks["swap"][1], peaks["resident"][1])
    assert np.abs(peaks["offload"][1] - peaks["resident"][1]).max() < 1e-2


@pytest.mark.parametrize(
    ("processor", "dtype"),
    [((False, False), "float32"), ((True, False), "bfloat16"), ((False, True), "bfloat16"), ((True, True), "bfloat16")],
)
def test_the_vae_computes_in_what_the_processor_multiplies_fast(checkpoint, monkeypatch, processor, dtype):
    """bfloat16 with AVX512-bf16 or AMX, else float32; what is asked for by name is kept."""
    for name, there in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), processor, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda there=there: there, raising=False)
    assert run.resolved(make_spec(checkpoint, device="cpu", vae_dtype="auto")).vae_dtype == dtype
    assert run.resolved(make_spec(checkpoint, device="cpu", vae_dtype="bfloat16")).vae_dtype == "bfloat16"


def test_the_vae_computes_in_float32_where_torch_cannot_tell(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert fast_dtype() == "float32"
