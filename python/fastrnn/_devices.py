"""Which devices have kernels."""

from __future__ import annotations

import functools
import importlib

import torch


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
