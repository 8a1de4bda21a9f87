"""Which kernels serve a tensor: the only place that chooses by its device."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from . import _attention_kernels, _cuda_attention, _cuda_decoder, _cuda_kernels, _decoder_kernels, _kernels


def kernels_of(x: Tensor) -> ModuleType:
    """The module that runs layers on the device of x; both modules have the same functions."""
    return _cuda_kernels if x.is_cuda else _kernels


def attention_of(x: Tensor) -> ModuleType:
    """The module that runs attention on the device of x; both modules have the same functions."""
    return _cuda_attention if x.is_cuda else _attention_kernels


def decoder_of(x: Tensor) -> ModuleType:
    """The module that runs attention decoders on the device of x; both modules have the same functions."""
    return _cuda_decoder if x.is_cuda else _decoder_kernels
