"""Where a model's weights are while a run goes on. Every plan computes the same; they differ in memory and time.

resident  everything stays on the device
swap      on the device is the part at work: text encoder, one expert, VAE. Each is read and made ready on the device
          once, then waits in page-locked host memory, from which it comes back at the bus's full speed
offload   as swap, but of the experts' blocks only the one at work and the next one, on its way, are on the device
          (diffusers' group offloading): for cards that do not hold one expert

What a plan needs is predicted in engine/run/forecast.py from configurations alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading
from torch import Tensor, nn

from wanlab.errors import UsageError
from wanlab.spec import MEMORY_PLANS

HEADROOM = 0.94  # of the free memory: the rest is the allocator's and the libraries' own


def choose(peaks: Mapping[str, int], free: int) -> str:
    """The fastest plan whose predicted peak fits `free` bytes; the smallest when none does."""
    return next((name for name in MEMORY_PLANS if peaks[name] <= HEADROOM * free), MEMORY_PLANS[-1])


def check_keys(peaks: Mapping[str, int], keys: int, plan: str, free: int) -> None:
    """Raises UsageError where a policy keeps `keys` bytes of keys and values and the plan's predicted peak is more
    than `free` bytes."""
    if not keys or peaks[plan] <= free:
        return
    fitting = [name for name in MEMORY_PLANS if peaks[name] <= free]
    raise UsageError(
        f"{keys / 1e9:.1f} GB of kept keys and values make it {peaks[plan] / 1e9:.1f} GB under plan {plan}, and "
        f"{free / 1e9:.1f} GB are free on the device",
        (f"use --memory {fitting[0]}, or " if fitting else "use ")
        + "keys_dtype=float8 or keys=absent in the policy, fewer frames, or a smaller size",
    )


class HostMemory:
    """Page-locked memory for weights, in pieces of 1 GiB: the allocator rounds whatever is asked for up to a power of
    two, which would cost a large model's tensors half as much again."""

    PIECE = 2**30
    ALIGNMENT = 256

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, module: nn.Module) -> list[Tensor]:
        """Move a module's weights here, one after the other, so that never are two copies of it anywhere."""
        tensors = [*module.parameters(), *module.buffers()]
        for tensor in tensors:
            tensor.data = self._copy(tensor.data)
        return [tensor.data for tensor in tensors]

    def _copy(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        start = -(-self._used // self.ALIGNMENT) * self.ALIGNMENT
        if start + size > len(self._piece):
            length = max(self.PIECE, size)
            self._piece, start = torch.empty(length, dtype=torch.uint8, pin_memory=True), 0
        self._used = start + size
        host = self._piece[start : start + size].view(tensor.dtype).view(tensor.shape)
        return host.copy_(tensor)


class Parked:
    """A module whose weights are in host memory, and on the device between `enter` and `leave`."""

    def __init__(self, module: nn.Module, device: torch.device, memory: HostMemory) -> None:
        """module  on the device; it is parked here"""
        self.module, self._device = module, device
        self._tensors = [*module.parameters(), *module.buffers()]
        self._host = memory.take(module) if device.type == "cuda" else [t.data for t in self._tensors]

    def enter(self) -> None:
        """Copy the weights to the device."""
        for tensor, host in zip(self._tensors, self._host, strict=True):
            tensor.data = host.to(self._device, non_blocking=True)

    def leave(self) -> None:
        """Give the device's memory back. The weights were never changed, so nothing is copied."""
        for tensor, host in zip(self._tensors, self._host, strict=True):
            tensor.data = host


class Placement:
    """A model's parts, by name, under one of the plans."""

    def __init__(self, plan: str, device: torch.device) -> None:
        self._plan, self._device, self._here = plan, device, ""
        self._parts: dict[str, nn.Module] = {}
        self._parked: dict[str, Parked] = {}
        self._memory = HostMemory()

    def cradle(self, by_blocks: bool) -> torch.device:
        """Where a part is to be read and made ready; `by_blocks`: under plan offload it comes block by block."""
        return torch.device("cpu") if by_blocks and self._plan == "offload" else self._device

    def add(self, name: str, module: nn.Module, *, by_blocks: bool = False) -> None:
        """Take a part that is ready in its cradle."""
        self._parts[name] = module
        if by_blocks and self._plan == "offload":
            if self._device.type == "cuda":
                self._memory.take(module)  # diffusers page-locks tensor by tensor what is not page-locked
            apply_group_offloading(
                module,
                onload_device=self._device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                non_blocking=True,
                use_stream=self._device.type == "cuda",
            )
            self._keep_around_blocks(module)
        elif self._plan != "resident":
            self._parked[name] = Parked(module, self._device, self._memory)

    def _keep_around_blocks(self, module: nn.Module) -> None:
        """What is in no block comes to the device for good: by diffusers it would come and go through pageable memory
        at every pass, which nothing hides."""
        group = HookRegistry.check_if_exists_or_initialize(module).get_hook("group_offloading").group
        for part in group.modules:
            part.to(self._device)
        for tensor in (*group.parameters, *group.buffers):
            tensor.data = tensor.data.to(self._device)
        group.onload_ = group.offload_ = lambda: None

    def ready(self, name: str) -> nn.Module:
        """The part `name`, able to compute on the device; another that was there may have left."""
        if name != self._here:
            if self._here in self._parked:
                self._parked[self._here].leave()
            if name in self._parked:
                self._parked[name].enter()
            self._here = name
        return self._parts[name]
