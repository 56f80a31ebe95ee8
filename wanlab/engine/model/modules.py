"""The libraries' modules without memory: which parameters a configuration makes, and of which shape."""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Iterator, Mapping

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from wanlab.engine.model.config import Config
from wanlab.errors import WanlabError

KINDS = {"text_encoder": UMT5EncoderModel, "vae": AutoencoderKLWan, "transformer": WanTransformer3DModel}
TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # UMT5's word embeddings have two names


def blank(component: str, config: Mapping[str, object]) -> nn.Module:
    """A component with parameters that have a shape and no memory."""
    with init_empty_weights(include_buffers=False):
        if component == "text_encoder":
            encoder: nn.Module = UMT5EncoderModel(UMT5Config(**config))
            return encoder
        made: nn.Module = KINDS[component.removesuffix("_2")].from_config(dict(config))
        return made


def expected(name: str, component: str, config: Config) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter, by name. Raises WanlabError for a configuration that makes no model."""
    with loading(name):
        return shapes(component.removesuffix("_2"), json.dumps(config.raw))


@functools.lru_cache(maxsize=32)
def shapes(component: str, config: str) -> dict[str, tuple[int, ...]]:
    state = blank(component, json.loads(config)).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if name not in TIED}


def kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """The parts of names whose parameters stay in float32, as the libraries' own loading has them."""
    if isinstance(module, UMT5EncoderModel) and dtype != torch.float16:
        return set()  # transformers means these for float16 alone
    return set(getattr(module, "_keep_in_fp32_modules", None) or ())


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """What the libraries raise for a checkpoint they cannot load, in one line; no progress bars of theirs."""
    noisy = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    try:
        for log in noisy:
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the libraries to each other
            yield
    except (WanlabError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise WanlabError(f"cannot load {name}: {said}", "get the checkpoint again") from error
    finally:
        for log in noisy:
            log.enable_progress_bar()


@contextlib.contextmanager
def instead_of_blocks(expert: WanTransformer3DModel, module: nn.Module) -> Iterator[None]:
    """`module` in the place of the expert's blocks while inside."""
    blocks = expert.blocks
    expert.blocks = nn.ModuleList([module])
    try:
        yield
    finally:
        expert.blocks = blocks


def unviewed(rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Tables of positions as copies that are views of nothing: compiled code depends on the shape of what a view is of,
    so that one clip would be computed by other code, with other last bits, once another had been."""
    return rotary[0].clone(), rotary[1].clone()
