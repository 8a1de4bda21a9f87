"""Which kernels serve a tensor: the only place that looks at its device."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from . import _attention_kernels, _cuda_attention, _cuda_kernels, _kernels


def kernels_of(x: Tensor) -> ModuleType:
    """The module that runs layers on the device of x; both modules have the same functions."""
    return _cuda_kernels if x.is_cuda else _kernels


def attention_of(x: Tensor) -> ModuleType:
    """The module that runs attention on the device of x; both modules have the same functions."""
    return _cuda_attention if x.is_cuda else _attention_kernels


def why_not(device_type: str) -> str:
    """Why there are no kernels for tensors of this kind of device; "" if there are."""
    if device_type in ("cpu", "meta"):
        return ""
    if device_type != "cuda":
        return f"fastrnn has no kernels for {device_type}"
    return "" if torch.compiler.is_compiling() else _why_not_cuda()  # the operator asks again when it runs


@functools.cache
def _why_not_cuda() -> str:
    if torch.version.hip:
        return "fastrnn has no kernels for ROCm"
    try:
        cuda = importlib.import_module("fastrnn._cuda")
    except ImportError:
        return "this fastrnn was built without nvcc and has no CUDA kernels"
    return cuda.error()
