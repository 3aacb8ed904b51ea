"""Where training runs: on the CPU, or on what accelerate finds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ultramem_deploy.errors import InputError

from .options import HealOptions


@dataclass(frozen=True)
class Device:
    """A device, and whether layers that keep float32 weights compute in bfloat16 there."""

    device: torch.device
    bf16: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision; bfloat16 has float32's range, so that no loss needs scaling."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


def open_device(options: HealOptions) -> Device:
    """The device that the options name. Raises InputError where accelerate is missing or launched several processes."""
    device = torch.device("cpu") if options.device == "cpu" else _accelerator()
    return Device(device, options.autocast == "bf16")


def _accelerator() -> torch.device:
    try:
        from accelerate.state import PartialState
    except ImportError:
        raise InputError("--device gpu: needs accelerate: pip install 'ultramem-deploy[hf]'") from None
    state: Any = PartialState()
    if state.num_processes > 1:
        raise InputError(
            f"--device gpu: heal runs in one process, found {state.num_processes}: start it without launcher"
        )
    device: torch.device = state.device
    return device
