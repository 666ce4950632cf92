"""The device of this machine."""

import os

import torch

from lrc.utils.errors import InputError


def device() -> torch.device:
    """The device that `LRC_DEVICE` names, by default the accelerator that PyTorch finds, else the CPU.

    Raises InputError: PyTorch does not know the device, or cannot use it here.
    """
    if not (named := os.environ.get("LRC_DEVICE")):
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=named).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch built without that backend
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"LRC_DEVICE is {named!r}, which cannot be used here ({reason}): unset it, or take cpu"
        ) from error
