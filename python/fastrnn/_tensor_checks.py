"""Checks of tensor arguments that all torch front ends share: type, layout, dtype, device, memory; and `lengths`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _checks
from ._memory import check_storage

# Bound once, like those of _paths.py.
_is_compiling = torch.compiler.is_compiling
_functorch_active = torch._C._are_functorch_transforms_active
_PLAIN = (Tensor, Parameter)
_FEW = 64  # numbers that Python compares sooner than it calls a reduction
WIDE_DTYPES = (torch.float32, torch.float64)
NARROW_DTYPES = (torch.bfloat16, torch.float16)
FLOATS = "float32, float64, bfloat16 or float16"
_INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def is_plain(t: object, like: Tensor | None = None) -> bool:
    """Whether t is a dense float32 or float64 tensor on a CPU, as `like` is if that is given.

    The quick look: calls check argument by argument, to name the wrong one, only after this has failed.
    """
    if not _is_dense_here(t) or t.dtype not in WIDE_DTYPES:
        return False
    return like is None or (t.dtype is like.dtype and like.is_cpu)


def _is_dense_here(t: object) -> bool:
    return type(t) in _PLAIN and t.is_cpu and t.layout is torch.strided and not t.is_nested


def check_dense(function: str, name: str, t: object, kind: str = "a torch.Tensor") -> None:
    """Raises unless t is a tensor whose elements lie in memory with strides."""
    if not isinstance(t, Tensor):
        raise _checks.type_error(function, name, t, kind)
    if t.layout is not torch.strided or t.is_nested:
        layout = "nested" if t.is_nested else t.layout
        raise _checks.DeviceError(f"{function}: {name} has layout {layout}, expected a dense tensor (torch.strided)")


def check_floats(function: str, name: str, t: object, hint: str = "") -> None:
    """Raises unless t is a dense tensor of a floating-point dtype that is computed with."""
    check_dense(function, name, t)
    if t.dtype not in WIDE_DTYPES and t.dtype not in NARROW_DTYPES:
        raise _checks.dtype_error(function, name, t.dtype, FLOATS, hint)


def check_like(function: str, name: str, t: object, other: Tensor, other_name: str = "x") -> None:
    """Raises unless t is a dense tensor with the dtype and device of another argument."""
    check_dense(function, name, t)
    if t.dtype is not other.dtype:
        raise _checks.dtype_error(function, name, t.dtype, f"{other.dtype} (the dtype of {other_name})")
    check_device(function, name, t, other, other_name)


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """What autocast makes of float32 on the device of t; None where it is off, or unknown."""
    kind = t.device.type
    return torch.get_autocast_dtype(kind) if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) else None


def check_integers(function: str, name: str, t: Tensor) -> None:
    """Raises unless t has an integer dtype, which bool is not."""
    if t.dtype not in _INTEGERS:
        raise _checks.dtype_error(function, name, t.dtype, "an integer dtype")


def check_device(function: str, name: str, t: Tensor, other: Tensor, other_name: str = "x") -> None:
    """Raises unless t is on the device of another argument."""
    if t.device != other.device:
        raise _checks.device_error(function, name, t.device, f"{other.device} (the device of {other_name})")


def check_memory(function: str, name: str, t: Tensor) -> None:
    """Raises for a tensor that reaches past its storage, which torch's own operations would read all the same.

    Kernels check this where they take addresses; this is for tensors that torch reads first.
    """
    if type(t) in _PLAIN and not t.is_meta and not _is_compiling() and not _functorch_active():
        check_storage(function, name, t)


def as_lengths(
    function: str,
    lengths: Tensor | Sequence[int],
    B: int | None,
    like: Tensor,
    name: str = "x",
    T: int | None = None,
) -> Tensor:
    """Lengths as an int64 tensor beside `like` (the argument `name`), of shape [B] if B is given.

    Values are looked at only if T is given and they are about to leave the CPU: kernels for CPUs look themselves, those
    for other devices clamp.
    """
    if _is_dense_here(lengths) and lengths.dtype is torch.int64 and lengths.shape == (B,) and like.is_cpu:
        check_memory(function, "lengths", lengths)
        return lengths
    if not isinstance(lengths, Tensor):
        lengths = _tensor_of(function, lengths)
    check_dense(function, "lengths", lengths)
    check_integers(function, "lengths", lengths)
    if B is not None:
        _checks.check_shape(function, "lengths", lengths.shape, "(B,)", (B,))
    if lengths.is_meta and not like.is_meta:
        raise _checks.device_error(function, "lengths", lengths.device, f"{like.device} (the device of {name})")
    check_memory(function, "lengths", lengths)
    if T is not None and lengths.device != like.device:
        check_lengths_within(function, lengths, T)
    return lengths.to(like.device, torch.int64)


def _tensor_of(function: str, lengths: object) -> Tensor:
    for read in (torch.as_tensor, lambda array: torch.as_tensor(array.tolist())):  # any strides and byte order
        try:
            found = read(lengths)
        except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError):
            continue
        return found if found.numel() else found.long()
    raise _checks.type_error(function, "lengths", lengths, "integers [B]")


def check_lengths_within(function: str, lengths: Tensor, T: int) -> None:
    """Raises if lengths reach outside the sequence, where their values can be seen without waiting for a device."""
    if lengths.is_cpu and lengths.numel() and not _is_compiling() and not _functorch_active():
        if lengths.numel() <= _FEW:
            found = lengths.tolist()
            lowest, highest = min(found), max(found)
        else:
            lowest, highest = (int(n) for n in lengths.aminmax())
        _checks.check_lengths(function, lowest, highest, T)
