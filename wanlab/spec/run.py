"""What a run is asked to do: frozen, validated, with a canonical JSON and a digest of what decides its result.

Imports neither torch nor diffusers. Every bad value is a UsageError that names the remedy, raised by the
constructor, so a RunSpec that exists is a possible one as far as can be told without looking at a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from wanlab.errors import UsageError
from wanlab.registry import digest, suggest
from wanlab.spec.parallel import AUTO, Layout

SPEC_VERSION = 2
READABLE = (1, 2)  # version 1 had no guider and no policies from files

SOLVERS = ("unipc", "dpm++", "euler")
SCHEDULES = ("diffusers", "wan")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LEVELS = ("metrics", "latents", "all")
ATTENTIONS = ("auto", "math", "flash", "efficient", "cudnn", "flash3", "flash3-fp8")
PRECISIONS = ("reference", "exact", "fp8")  # from equal to WanPipeline to fast
MEMORY_PLANS = ("resident", "swap", "offload")  # from fast to small
RECORD_DTYPES = ("float32", "float16")
VIDEOS = ("uint8", "float32")
FREE = ("record", "memory", "parallel")  # fields that decide no result, and are no part of the digest

SIZE_STEP = 16  # spatial stride 8 times patch 2
FRAME_STEP = 4  # temporal stride
MAX_SIZE = 8192
MAX_FRAMES = 4 * 1023 + 1  # 1024 rotary positions in time
MAX_STEPS = 1000  # the models know 1000 timesteps
MAX_PROMPT = 10_000  # characters; the text encoder reads 512 tokens
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and surrogates, as of a path that is not UTF-8

Knob = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class RecordSpec:
    """What is written beside the result. Changes no result."""

    level: str = "metrics"
    """"metrics"; "latents" adds x_t; "all" adds x0_pred, eps_pred, velocity and both branches."""
    every: int = 1
    """Record latents at steps 0, every, 2*every, … and at the last, with `probe` at level "all" also at the two around
    the expert switch; metrics are recorded at all steps."""
    dtype: str = "float32"
    """How latents are stored: "float32" or "float16"."""
    video: str = "uint8"
    """"uint8": the frames as they are shown; "float32" keeps them also before rounding."""
    probe: bool = False
    """Evaluate the branches that a policy skips, for the record only; neither used nor counted. At level "all" also
    the other expert, at the two steps around the expert switch."""

    @property
    def other_expert(self) -> bool:
        """Whether the other expert is evaluated around the expert switch."""
        return self.probe and self.level == "all"

    def __post_init__(self) -> None:
        _choice("--record", self.level, LEVELS)
        _choice("--record-dtype", self.dtype, RECORD_DTYPES)
        _choice("--record-video", self.video, VIDEOS)
        _whole("--record-every", self.every, 1, MAX_STEPS)
        _flag("--probe", self.probe)

    def covers(self, other: RecordSpec) -> bool:
        """Whether a run recorded like this holds everything that one recorded like `other` would."""
        latents = other.level == "metrics" or (
            LEVELS.index(self.level) >= LEVELS.index(other.level)
            and self.dtype == other.dtype
            and self.every in (1, other.every)
        )
        return latents and VIDEOS.index(self.video) >= VIDEOS.index(other.video) and self.probe >= other.probe


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name with its knobs; `parse` reads the command line's form of it."""

    name: str
    knobs: Mapping[str, Knob] | tuple[tuple[str, Knob], ...] = ()
    """Given as a mapping or pairs, kept as sorted pairs so that equal specs are equal."""
    file: str = ""
    """The Python file that registers the name; "" for what wanlab or an installed package has."""
    code: str = ""
    """SHA-256 (hex) of that file, or else of the .json that a knob names: an edit makes another specification."""

    def __post_init__(self) -> None:
        pairs = self.knobs.items() if isinstance(self.knobs, Mapping) else self.knobs
        object.__setattr__(self, "knobs", tuple(sorted((str(k), v) for k, v in pairs)))
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", self.name):
            hint = f"add the name that it registers: {self.name}:NAME" if self.name.endswith(".py") else ""
            raise UsageError(f"'{short(self.name)}' is no policy name", hint or "write name:knob=value,knob=value")
        for key, value in self.options.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
                raise UsageError(f"'{short(key)}' is no knob of a policy", "write name:knob=value,knob=value")
            if not isinstance(value, str | int | float | bool) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise UsageError(f"knob {key} of policy {self.name} is {value!r}", "give a number or a word")
        if not isinstance(self.code, str) or not re.fullmatch(r"([0-9a-f]{64})?", self.code):
            raise UsageError(f"the code of policy {self.name} is {short(str(self.code))!r}, no SHA-256 in hex")
        for text in (self.file, *map(str, self.options.values())):
            if not isinstance(text, str) or _CONTROL.search(text):
                raise UsageError(f"policy {self.name} is given {short(repr(text), 60)}", "use printable characters")

    @property
    def options(self) -> dict[str, Knob]:
        """The knobs as a dictionary."""
        return dict(self.knobs)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`name` or `name:knob=value,knob=value`, behind `FILE.py:` if a file registers it; values are whole numbers,
        numbers, true/false or words.

        Raises UsageError when `text` has another form or its file cannot be read.
        """
        file = re.match(r"(.+?\.py):(?=[a-z])", text.strip())
        name, _, rest = text.strip().removeprefix(file[0] if file else "").partition(":")
        knobs: dict[str, Knob] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if not equals or not key or not value:
                raise UsageError(f"'{short(text)}' is no policy", "write name:knob=value,knob=value")
            if key in knobs:
                raise UsageError(f"knob {short(key)} is given twice in '{short(text)}'", "give it once")
            knobs[key] = parse_value(value)
        if file:
            return cls(name.strip(), knobs, file[1], digest(file[1]))
        named = [v for v in knobs.values() if isinstance(v, str) and v.endswith(".json")]
        return cls(name.strip(), knobs, code=digest(named[0]) if named else "")

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(plain["name"], plain.get("knobs", {}), plain.get("file", ""), plain.get("code", ""))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = {"name": self.name, "knobs": self.options}
        return plain | ({"file": self.file} if self.file else {}) | ({"code": self.code} if self.code else {})

    def __str__(self) -> str:
        knobs = ",".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in self.options.items())
        return ":".join(filter(None, (self.file, self.name, knobs)))


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides a run's result, and what is recorded of it (`record`)."""

    prompt: str
    """What to show; up to 10 000 characters, no control characters."""
    negative_prompt: str = ""
    """What the unconditional branch is given."""
    model: str = "tiny"
    """"tiny", a directory, or a hub id."""
    revision: str = ""
    """The hub revision; empty for the default."""
    seed: int = 0
    """Seeds one CPU generator, from which all noise is drawn in order."""
    width: int = 144
    """Pixels, a multiple of 16."""
    height: int = 80
    """Pixels, a multiple of 16."""
    frames: int = 49
    """Video frames, 4n+1."""
    steps: int = 20
    """Denoising steps, 1 to 1000."""
    shift: float | None = None
    """Flow shift; None takes the one in the checkpoint's scheduler config."""
    solver: str = "unipc"
    """"unipc", "dpm++" or "euler"."""
    schedule: str = "diffusers"
    """"diffusers", or "wan" for the official repository's sigmas and timesteps."""
    guidance: tuple[float, float] = (4.0, 4.0)
    """Guidance scales (low-noise expert, high-noise expert); a model of one expert uses the first."""
    guider: PolicySpec = PolicySpec("cfg")
    """How the branches' velocities become one (engine/guiders.py)."""
    batch_cfg: bool = False
    """Evaluate both branches in one forward of batch 2."""
    policies: tuple[PolicySpec, ...] = ()
    """All of them together: docs/methods.md, "Combining policies"."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:N" or "mps"."""
    dtype: str = "auto"
    """The transformers' dtype; "auto" is float32 on the CPU and bfloat16 elsewhere."""
    vae_dtype: str = "auto"
    """The VAE's dtype; "auto" is bfloat16 on the CPU (float32 convolutions are slow there), else float32."""
    precision: str = "auto"
    """How the transformers compute (model/kernels.py): "reference" as diffusers does, "exact" the same by faster
    kernels, "fp8" in 8-bit products. "auto" is exact for a model of a billion parameters on a GPU, else reference."""
    attention: str = "auto"
    """The attention kernel: "math", "flash", "efficient", "cudnn", or FlashAttention-3 in 16 bits, "flash3", or in 8,
    "flash3-fp8". "auto" is torch's choice, and the fastest in 16 bits with precision exact or fp8 on Hopper and
    later."""
    memory: str = "auto"
    """Where the weights are: "resident", "swap" or "offload"; "auto" takes the fastest that fits the GPU. Not a part
    of the digest: every plan computes the same."""
    parallel: str = AUTO
    """How the processes that `torchrun` started share the run (parallel.py): "auto", "none", or some of
    "cfg=2,ulysses=N,ring=N". Not a part of the digest: a run may go on upon another number of GPUs; what that changes
    is in the last bits, a row of the noise floor."""
    record: RecordSpec = field(default_factory=RecordSpec)
    """What is written beside the result."""

    def __post_init__(self) -> None:
        _prompt("prompt", self.prompt, empty=False)
        _prompt("negative prompt", self.negative_prompt, empty=True)
        if not isinstance(self.model, str) or not self.model.strip() or not self.model.isprintable():
            raise UsageError("no model is named", "use --model tiny, a directory, or a hub id")
        if not isinstance(self.revision, str) or not re.fullmatch(r"[\w./-]{0,128}", self.revision):
            raise UsageError(f"'{short(str(self.revision))}' is no revision", "name a branch, tag or commit")
        _whole("--seed", self.seed, 0, 2**63 - 1)
        check_size(self.width, self.height)
        check_frames(self.frames)
        _whole("--steps", self.steps, 1, MAX_STEPS)
        if self.shift is not None:
            object.__setattr__(self, "shift", _number("--shift", self.shift, 0.01, 1000.0))
        _choice("--solver", self.solver, SOLVERS)
        _choice("--schedule", self.schedule, SCHEDULES)
        if self.schedule == "wan" and self.solver == "euler":
            raise UsageError(
                "the official repository has no Euler schedule", "use --schedule diffusers, or --solver unipc"
            )
        if not isinstance(self.guidance, tuple | list) or len(self.guidance) != 2:
            raise UsageError(f"guidance {self.guidance!r} is no pair", "give LOW or LOW,HIGH, such as 3,4")
        scales = tuple(_number("--guidance", g, 0.0, 1000.0) for g in self.guidance)
        object.__setattr__(self, "guidance", scales)
        _flag("--batch-cfg", self.batch_cfg)
        object.__setattr__(self, "policies", tuple(self.policies))
        if not all(isinstance(p, PolicySpec) for p in self.policies):
            raise UsageError("policies are not PolicySpec", "use PolicySpec.parse")
        if isinstance(self.guider, str):
            object.__setattr__(self, "guider", PolicySpec.parse(self.guider))
        if not isinstance(self.guider, PolicySpec):
            raise UsageError("the guider is no PolicySpec", "use PolicySpec.parse")
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,2})?", self.device):
            raise UsageError(f"unknown device '{short(str(self.device))}'", "use auto, cpu, cuda or cuda:N")
        _choice("--dtype", self.dtype, DTYPES)
        _choice("--vae-dtype", self.vae_dtype, DTYPES)
        _choice("--precision", self.precision, ("auto", *PRECISIONS))
        _choice("--attention", self.attention, ATTENTIONS)
        _choice("--memory", self.memory, ("auto", *MEMORY_PLANS))
        if self.parallel != AUTO:
            object.__setattr__(self, "parallel", str(Layout.parse(self.parallel)))
        if not isinstance(self.record, RecordSpec):
            raise UsageError("record is not a RecordSpec", "use RecordSpec(level=…)")

    @property
    def latent_frames(self) -> int:
        """F of the latents [C,F,H/8,W/8]: (frames - 1)/4 + 1."""
        return (self.frames - 1) // FRAME_STEP + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["policies"] = [p.to_dict() for p in self.policies]
        plain["guider"] = self.guider.to_dict()
        plain["guidance"] = list(self.guidance)
        plain["record"] = dataclasses.asdict(self.record)
        return plain | {"spec_version": SPEC_VERSION}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. `from_json` gives the same spec back."""
        return _canonical(self.to_dict())

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON without what `FREE` names and the places of files: equal for runs whose
        results must be equal."""
        decides = {k: v for k, v in self.to_dict().items() if k not in FREE}
        for component in (*decides["policies"], decides["guider"]):
            component.pop("file", None)
        return hashlib.sha256(_canonical(decides).encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec written by `to_json`. Raises UsageError when it is not one."""
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the run's specification is no JSON: {error}") from error
        return cls.from_dict(plain)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The spec of `to_dict`, fields left out being the defaults. Raises UsageError for unknown fields."""
        if not isinstance(plain, Mapping):
            raise UsageError("the run's specification is no JSON object")
        given = dict(plain)
        version = given.pop("spec_version", SPEC_VERSION)
        if version not in READABLE:
            raise UsageError(f"the specification has version {version!r}", "read it with a newer wanlab")
        try:
            if "policies" in given:
                given["policies"] = tuple(map(PolicySpec.from_dict, given["policies"]))
            if "guider" in given:
                given["guider"] = PolicySpec.from_dict(given["guider"])
            if "guidance" in given:
                given["guidance"] = tuple(given["guidance"])
            if "record" in given:
                given["record"] = RecordSpec(**given["record"])
            for name in given:
                if name not in cls.__dataclass_fields__:
                    raise UsageError(
                        f"unknown field '{short(str(name))}'", suggest(str(name), cls.__dataclass_fields__)
                    )
            return cls(**given)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UsageError(f"the run's specification is malformed: {error}") from error


def parse_guidance(text: str) -> tuple[float, float]:
    """`LOW` or `LOW,HIGH`; one value serves both experts. Raises UsageError."""
    parts = text.split(",")
    try:
        scales = [float(p) for p in parts]
    except ValueError:
        scales = []
    if len(scales) not in (1, 2):
        raise UsageError(f"guidance '{short(text)}' is not LOW or LOW,HIGH", "write --guidance 3,4")
    return scales[0], scales[-1]


def parse_size(text: str) -> tuple[int, int]:
    """`832x480` or `832*480` as (width, height), checked. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*[x*×]\s*(\d{1,5})\s*", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise UsageError(f"size '{short(text)}' is not WIDTHxHEIGHT", "write --size 832x480")
    width, height = int(match[1]), int(match[2])
    check_size(width, height)
    return width, height


def check_size(width: int, height: int) -> None:
    """Raises UsageError, naming the nearest possible size, unless both are multiples of 16 up to 8192."""
    for name, value in (("width", width), ("height", height)):
        _whole(name, value, -(2**63), 2**63)
        if value % SIZE_STEP or not 0 < value <= MAX_SIZE:
            near = " or ".join(str(n) for n in _nearest(value, SIZE_STEP, 0, SIZE_STEP, MAX_SIZE))
            raise UsageError(f"{name} {value} is not a multiple of {SIZE_STEP} up to {MAX_SIZE}", f"use {near}")


def check_frames(frames: int) -> None:
    """Raises UsageError, naming the nearest two counts, unless frames = 4n+1."""
    _whole("--frames", frames, -(2**63), 2**63)
    if frames % FRAME_STEP != 1 or not 1 <= frames <= MAX_FRAMES:
        near = " or ".join(str(n) for n in _nearest(frames, FRAME_STEP, 1, 1, MAX_FRAMES))
        raise UsageError(f"frame count {frames} is not 4n+1 from 1 to {MAX_FRAMES}", f"use {near}")


def _nearest(value: int, step: int, offset: int, low: int, high: int) -> list[int]:
    """The two values k*step + offset around `value`, within [low, high]; one when they coincide."""
    below = (value - offset) // step * step + offset
    return sorted({min(max(n, low), high) for n in (below, below + step)})


def _prompt(what: str, text: str, *, empty: bool) -> None:
    if not isinstance(text, str):
        raise UsageError(f"the {what} is {type(text).__name__}, not text")
    if not empty and not _says_something(text):
        name = f"{what} '{short(text)}'" if text.strip() else what
        raise UsageError(f"the {name} is empty", "say what the video should show")
    if len(text) > MAX_PROMPT:
        raise UsageError(
            f"the {what} has {len(text)} characters, more than {MAX_PROMPT}",
            "shorten it: the text encoder reads 512 tokens",
        )
    for found in _CONTROL.finditer(text):
        if found[0] not in "\t\n\r":
            where = f"U+{ord(found[0]):04X} at position {found.start()}"
            raise UsageError(f"the {what} has control character {where}", "remove it")


def _says_something(text: str) -> bool:
    """Whether anything can be seen of a text once its entities are resolved, as diffusers' prompt_clean does."""
    text = html.unescape(html.unescape(text))
    return not all(char.isspace() or unicodedata.category(char) == "Cf" for char in text)


def _choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{what} '{short(str(value))}' is unknown", suggest(str(value), known))


def _flag(what: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{what} is {value!r}", "use true or false")


def _whole(what: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{what} {value!r} is no whole number", f"use {low} to {high}")
    if not low <= value <= high:
        raise UsageError(f"{what} {value} is out of range", f"use {low} to {high}")


def _number(what: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{what} {value!r} is out of range", f"use {low:g} to {high:g}")
    return float(value)


def parse_value(text: str) -> Knob:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def short(text: str, most: int = 60) -> str:
    """`text` made fit for one line of an error: escaped and cut."""
    escaped = text.encode("unicode_escape", "backslashreplace").decode() if not text.isprintable() else text
    return escaped if len(escaped) <= most else escaped[: most - 1] + "…"


def _canonical(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
