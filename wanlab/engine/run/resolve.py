"""What a specification leaves to be found out: device, dtypes, layout of ranks, precision, memory plan."""

from __future__ import annotations

import dataclasses
import time

import torch

from wanlab.engine.model import kernels, loading, placement
from wanlab.engine.model.loading import Checkpoint
from wanlab.engine.ranks import choice
from wanlab.engine.run.forecast import Forecast, forecast
from wanlab.engine.solvers import default_shift
from wanlab.errors import UsageError
from wanlab.spec import RunSpec
from wanlab.spec.parallel import Layout


def resolve(spec: RunSpec, checkpoint: Checkpoint) -> RunSpec:
    """The spec with everything named that was left to be chosen: device, dtypes, shift, layout of ranks, precision,
    memory plan and attention. Raises UsageError for what this machine has not."""
    device = _device(spec)
    cpu = device == "cpu"
    rounding = cpu and spec.attention == "flash3-fp8" and spec.precision in ("exact", "fp8")  # shown without the speed
    if not device.startswith("cuda") and spec.attention not in ("auto", "math", "flash") and not rounding:
        raise UsageError(f"--attention {spec.attention} needs a GPU of NVIDIA's", "use auto, math or flash")
    spec = dataclasses.replace(
        spec,
        device=device,
        dtype=spec.dtype if spec.dtype != "auto" else "float32" if cpu else "bfloat16",
        vae_dtype=spec.vae_dtype if spec.vae_dtype != "auto" else fast_dtype() if cpu else "float32",
        shift=spec.shift if spec.shift is not None else default_shift(checkpoint.scheduler),
    )
    spec = choice.choose(spec, checkpoint.transformer.num_attention_heads)
    if spec.attention == "flash3-fp8" and Layout.parse(spec.parallel).ring > 1:
        raise UsageError("--attention flash3-fp8 does not go round a ring", "use --parallel ulysses=N, or flash3")
    if device.startswith("cuda"):
        return _attention(_precision(spec, checkpoint), checkpoint)
    return dataclasses.replace(
        spec,
        precision="reference" if spec.precision == "auto" else spec.precision,
        memory="resident" if spec.memory == "auto" else spec.memory,
    )


def _device(spec: RunSpec) -> str:
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and (
        not torch.cuda.is_available() or int(device.partition(":")[2] or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"there is no device {device}", "use --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("there is no device mps", "use --device cpu or auto")
    return device


def fast_dtype() -> str:
    """bfloat16 on a CPU that multiplies it (AVX512-bf16 or AMX); elsewhere it is many times slower than float32."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bfloat16" if any(check is not None and check() for check in checks) else "float32"


def _precision(spec: RunSpec, checkpoint: Checkpoint) -> RunSpec:
    """Precision and memory plan on a GPU: they depend on each other."""
    asked = spec.precision
    if asked == "auto":
        large = loading.parameters(checkpoint)["transformer"] >= 1e9
        spec = dataclasses.replace(spec, precision="exact" if large else "reference")
    if asked == "fp8":
        problem = (
            "--precision fp8 needs --dtype bfloat16" if spec.dtype != "bfloat16" else kernels.fp8_problem(spec.device)
        )
        if problem:
            raise UsageError(problem, "use --precision exact")
    planned = forecast(spec, checkpoint)
    if spec.memory == "auto":
        spec = dataclasses.replace(spec, memory=placement.choose(planned.memory_plans, _free(spec.device)))
    if spec.memory == "offload" and spec.precision != "reference":
        if asked != "auto":
            raise UsageError(
                f"--precision {asked} needs a whole expert on the device, plan offload never has one there",
                "use --precision reference, or a smaller --dtype",
            )
        spec = dataclasses.replace(spec, precision="reference")
    if keys := planned.memory_bytes.get("keys", 0):  # the device is asked only then
        placement.check_keys(planned.memory_plans, keys, spec.memory, _free(spec.device))
    return spec


def _free(device: str) -> int:
    """Bytes of the device that a run can have: what this process holds already is its own to let go of."""
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def _attention(spec: RunSpec, checkpoint: Checkpoint) -> RunSpec:
    if spec.attention.startswith("flash3") and (lacking := _without_flash3(spec, checkpoint)):
        raise UsageError(f"--attention {spec.attention}: {lacking[0]}", lacking[1])
    if (
        spec.attention == "auto"
        and spec.precision != "reference"
        and torch.cuda.get_device_capability(spec.device) >= (9, 0)
    ):
        # The fastest there (benchmarks/a14b.md); both are for 16 bits.
        if not _without_flash3(spec, checkpoint):
            spec = dataclasses.replace(spec, attention="flash3")
        elif spec.dtype != "float32":
            spec = dataclasses.replace(spec, attention="cudnn")
    return spec


def _without_flash3(spec: RunSpec, checkpoint: Checkpoint) -> tuple[str, str] | None:
    """What keeps a resolved spec from FlashAttention-3, and what to do; None when nothing does."""
    heads = checkpoint.transformer.attention_head_dim
    if torch.cuda.get_device_capability(spec.device) != (9, 0):
        return "it is for Hopper GPUs", "use --attention auto"
    if spec.memory == "offload":
        return (
            "it needs a whole expert on the device, and plan offload never has one there",
            "use --attention auto, or what lets plan swap fit: fewer frames, a smaller size",
        )
    if spec.precision == "reference":
        return "it is no kernel of torch's, and --precision reference has only these", "add --precision exact"
    if spec.dtype != "bfloat16":
        return f"it is for bfloat16, not {spec.dtype}", "use --dtype bfloat16"
    if heads % 8 or heads > 256:
        return f"it has no heads of {heads}", "use --attention auto"
    if problem := kernels.flash3_problem():
        return problem, "pip install fa3-fwd, or use --attention cudnn"
    return None


def resolved(spec: RunSpec) -> RunSpec:
    """The spec as a run of it would name it (`resolve`). Raises UsageError as the run would."""
    return resolve(spec, loading.describe(spec.model, spec.revision))


def plan(spec: RunSpec) -> Forecast:
    """What a run of `spec` would do and cost, from configurations only. Raises as the run itself would."""
    checkpoint = loading.describe(spec.model, spec.revision)
    return forecast(resolve(spec, checkpoint), checkpoint)


def operations_per_second(spec: RunSpec) -> float:
    """This machine's rate at one large matrix product in a resolved spec's dtype: no transformer runs faster."""
    device, dtype = torch.device(spec.device), loading.DTYPES[spec.dtype]
    n = 8192 if device.type == "cuda" else 1024
    x = torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(2):  # the first includes one-off work
        began = time.perf_counter()
        (x @ x).sum().item()
        seconds = time.perf_counter() - began
    return 2 * n**3 / seconds
