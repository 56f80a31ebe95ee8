"""Where a model's weights are while a run goes on. Every plan computes the same; they differ in memory and time.

resident  everything stays on the device
swap      on the device is the part at work: text encoder, one expert, VAE. The others wait in pinned host memory, and
          while one expert runs, the next one's files are read there (with precision reference; the others read them
          while loading); the switch then costs one copy to the device
offload   as swap, but of an expert only the block at work and the next one, on its way, are on the device
          (diffusers' group offloading): for cards that do not hold one expert

What a plan needs is predicted in plan.py from configurations alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from wanlab.spec import MEMORY_PLANS

HEADROOM = 0.94  # of the free memory: the rest is the allocator's and the libraries' own


def choose(peaks: Mapping[str, int], free: int) -> str:
    """The fastest plan whose predicted peak fits `free` bytes; the smallest when none does."""
    return next((name for name in MEMORY_PLANS if peaks[name] <= HEADROOM * free), MEMORY_PLANS[-1])


class Parked:
    """A module whose weights are in host memory, and on the device between `enter` and `leave`."""

    def __init__(self, module: nn.Module, device: torch.device, reader: ThreadPoolExecutor) -> None:
        self.module, self._device = module, device
        self._host: Future[list[Tensor]] = reader.submit(self._read)

    def enter(self) -> None:
        """Copy the weights to the device, waiting for what is still being read."""
        for tensor, host in zip(self._tensors(), self._host.result(), strict=True):
            tensor.data = host.to(self._device, non_blocking=True)

    def leave(self) -> None:
        """Give the device's memory back. The weights were never changed, so nothing is copied."""
        for tensor, host in zip(self._tensors(), self._host.result(), strict=True):
            tensor.data = host

    def _tensors(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def _read(self) -> list[Tensor]:
        if self._device.type != "cuda":
            return [tensor.data for tensor in self._tensors()]
        return [tensor.data.pin_memory() for tensor in self._tensors()]


class Placement:
    """A model's parts, by name, under one of the plans."""

    def __init__(
        self, plan: str, device: torch.device, parts: Mapping[str, nn.Module], experts: Mapping[str, object]
    ) -> None:
        """parts  in the order of their work; on the device already if the plan is "resident", else on the host"""
        self._parts, self._here = parts, ""
        self._parked: dict[str, Parked] = {}
        if plan == "resident":
            return
        # One reader, so that the parts are read in the order in which they are needed.
        reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        if device.type == "cuda":  # a new thread's GPU is the first one, which is not every process's
            reader.submit(torch.cuda.set_device, torch.cuda.current_device())
        for name, module in parts.items():
            if plan == "offload" and name in experts:
                apply_group_offloading(
                    module,
                    onload_device=device,
                    offload_device=torch.device("cpu"),
                    offload_type="block_level",
                    num_blocks_per_group=1,
                    non_blocking=True,
                    use_stream=device.type == "cuda",
                )
            else:
                self._parked[name] = Parked(module, device, reader)
        reader.shutdown(wait=False)

    def ready(self, name: str) -> nn.Module:
        """The part `name`, able to compute on the device; another that was there may have left."""
        if name != self._here:
            if self._here in self._parked:
                self._parked[self._here].leave()
            if name in self._parked:
                self._parked[name].enter()
            self._here = name
        return self._parts[name]
