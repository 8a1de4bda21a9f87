"""From a tensor to memory that a kernel can read: inside its storage, aligned, contiguous. The one place that knows how.
And memory for results."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _core
from ._checks import storage_error

_KEPT_BYTES = 1 << 19  # LSTM training with layer norm, H=128, B=8, reserve of 8 MB: 4 % less


def check_storage(function: str, name: str, t: Tensor) -> None:
    """Raises unless all elements lie within the tensor's storage, as those of a freed shard do not."""
    have = t.untyped_storage().nbytes()
    if t.is_contiguous():
        last = t.numel()
    else:
        last = 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride()))
    needed = (t.storage_offset() + last) * t.element_size()
    if needed > have and t.numel():
        raise storage_error(function, name, have, needed)


def aligned(t: Tensor) -> Tensor:
    """The tensor, or a copy if its address is no multiple of its elements' size, as torch.frombuffer allows."""
    return t.clone() if t.data_ptr() % t.element_size() else t


def dense(function: str, name: str, t: Tensor | None) -> Tensor | None:
    """The tensor as contiguous memory; None stays None."""
    if t is None:
        return None
    check_storage(function, name, t)
    return aligned(t.resolve_neg().contiguous())


def in_place(function: str, name: str, t: Tensor | None) -> Tensor | None:
    """The tensor as memory that can be read through its strides, without a copy where it is aligned; None stays None."""
    if t is None:
        return None
    check_storage(function, name, t)
    return aligned(t.resolve_neg())


def rows_in_place(function: str, name: str, t: Tensor | None) -> tuple[Tensor | None, int]:
    """A matrix that may be some columns of another one, and the distance of its rows; (None, 0) for None."""
    if t is None:
        return None, 0
    check_storage(function, name, t)
    t = aligned(t.resolve_neg())
    if t.stride(1) != 1 or t.stride(0) < t.shape[1]:
        t = t.contiguous()
    return t, t.stride(0)


def address_of(t: Tensor | None) -> int:
    """Where the memory is; 0 for None."""
    return 0 if t is None else t.data_ptr()


def kept_empty(like: Tensor, *shape: int) -> Tensor:
    """A CPU tensor without values, in the dtype of `like` (float32 or float64).

    A large one is the engine's memory, which goes back there when the last user lets go: the C library returns large
    blocks to the system, and the page faults of the next ones have taken as long as attention itself.
    """
    if like.element_size() * math.prod(shape) < _KEPT_BYTES:
        return like.new_empty(*shape)
    return torch.from_numpy(_core.kept_array(shape, like.element_size()))


def kept_empty_like(t: Tensor) -> Tensor:
    """kept_empty() in the shape and dtype of t, contiguous."""
    if t.nbytes < _KEPT_BYTES:
        return torch.empty_like(t, memory_format=torch.contiguous_format)
    return kept_empty(t, *t.shape)
