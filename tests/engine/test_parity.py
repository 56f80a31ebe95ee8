"""With no policy a run is the computation of `diffusers.WanPipeline`, bit for bit."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)

from .helpers import make_spec, passes, relative, sample

SCHEDULERS = {
    "unipc": lambda config, shift: UniPCMultistepScheduler.from_config(config, flow_shift=shift),
    "dpm++": lambda config, shift: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    ),
    "euler": lambda config, shift: FlowMatchEulerDiscreteScheduler(shift=shift),
}


def from_pipeline(pipeline, solver, steps, low, high, negative, seed=3):
    plain = pipeline.scheduler
    pipeline.scheduler = SCHEDULERS[solver](plain.config, plain.config.flow_shift)
    try:
        return pipeline(
            prompt="a red ball moves left",
            negative_prompt=negative,
            height=32,
            width=32,
            num_frames=17,
            num_inference_steps=steps,
            guidance_scale=high,
            guidance_scale_2=low,
            output_type="latent",
            generator=torch.Generator("cpu").manual_seed(seed),
        ).frames
    finally:
        pipeline.scheduler = plain


@pytest.fixture(scope="module", params=["small", "tiny"])
def both(request):
    """(our model, WanPipeline, path): of random weights, and the shipped ones."""
    if request.param == "small":
        return tuple(request.getfixturevalue(n) for n in ("model", "pipeline", "checkpoint"))
    from wanlab.embedded import tiny_path
    from wanlab.engine.model import loading as models

    pipe = WanPipeline.from_pretrained(tiny_path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return models.load("tiny"), pipe, tiny_path()


@pytest.mark.parametrize("negative", [None, "blurry and blue"])
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (4.0, 4.0), (3.0, 4.0)])
@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("solver", list(SCHEDULERS))
def test_bit_identical_to_wan_pipeline(both, solver, steps, low, high, negative):
    model, pipeline, checkpoint = both
    expected = from_pipeline(pipeline, solver, steps, low, high, negative)
    spec = make_spec(
        checkpoint,
        solver=solver,
        steps=steps,
        guidance=(low, high),
        negative_prompt=negative or "",
        seed=3,
    )
    records = sample(model, spec)
    assert torch.equal(records[-1].x_next, expected)
    if steps > 1:  # the shift is the checkpoint's, with which about two thirds of the steps are high-noise
        assert [r.ctx.expert for r in records].count("low") in (7, 8)
    assert expected.abs().max() > 0.1 and torch.isfinite(expected).all()
    assert passes(records) == steps * (1 if high == 1 else 2)


def test_the_test_can_fail(model, pipeline, checkpoint):
    """Another seed, guidance or negative prompt gives other latents."""
    expected = from_pipeline(pipeline, "unipc", 2, 4.0, 4.0, None)
    same = {"steps": 2, "seed": 3}
    assert torch.equal(sample(model, make_spec(checkpoint, **same))[-1].x_next, expected)
    for change in ({"seed": 4}, {"guidance": (4.0, 4.1)}, {"negative_prompt": "blurry"}, {"prompt": "a blue ball"}):
        assert not torch.equal(sample(model, make_spec(checkpoint, **(same | change)))[-1].x_next, expected)


def test_each_expert_has_its_own_guidance(model, pipeline, checkpoint):
    """WanPipeline guides neither expert when the high one's scale is 1; here each scale is its expert's own."""
    records = sample(model, make_spec(checkpoint, guidance=(4.0, 1.0)))
    by_expert = {e: sum(r.ran.passes for r in records if r.ctx.expert == e) for e in ("high", "low")}
    assert by_expert == {"high": 13, "low": 14}  # 13 steps alone, 7 steps with both branches
    records = sample(model, make_spec(checkpoint, guidance=(1.0, 4.0)))
    assert passes(records) == 13 * 2 + 7
    # Here the pipeline evaluates u + 1 (c - u) where c alone is the same number, but for rounding.
    expected = from_pipeline(pipeline, "unipc", 20, 1.0, 4.0, None, seed=0)
    assert 0 <= relative(records[-1].x_next, expected) < 1e-5


def test_batched_guidance_differs_by_rounding_only(model, checkpoint):
    one, both = (sample(model, make_spec(checkpoint), batched=b) for b in (False, True))
    assert passes(one) == passes(both) == 40
    assert relative(both[-1].x_next, one[-1].x_next) < 1e-4
    assert [r.ran.tokens for r in one] == [r.ran.tokens for r in both] == [40] * 20


def test_prompt_is_cleaned_and_padded_as_the_pipeline_does(model, pipeline):
    for prompt in ("a red ball", "  a &amp;  red\n ball ", "", "a " * 600, "naÃ¯ve ball"):
        with torch.no_grad():
            expected, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
        assert torch.equal(model.encode(prompt), expected)
    assert not model.encode("a red ball")[0, 4:].any()  # three words and the end mark


@pytest.mark.parametrize("solver", list(SCHEDULERS))
def test_single_expert(single_checkpoint, solver):
    """A model of one expert takes the first scale."""
    from wanlab.engine.model import loading as models

    spec = make_spec(single_checkpoint, steps=3, guidance=(4.0, 1.0), solver=solver, seed=3)
    records = sample(models.load(str(single_checkpoint)), spec)
    assert [r.ctx.expert for r in records] == ["single"] * 3 and passes(records) == 6
    pipeline = WanPipeline.from_pretrained(single_checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(records[-1].x_next, from_pipeline(pipeline, solver, 3, None, 4.0, None))


@pytest.mark.parametrize("solver", list(SCHEDULERS))
def test_bfloat16_is_the_pipelines_too(checkpoint, solver):
    from wanlab.engine.model import loading as models

    pipeline = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    spec = make_spec(checkpoint, steps=4, solver=solver, seed=3, dtype="bfloat16")
    records = sample(models.load(str(checkpoint), dtype=torch.bfloat16), spec)
    assert torch.equal(records[-1].x_next, from_pipeline(pipeline, solver, 4, 4.0, 4.0, None))
