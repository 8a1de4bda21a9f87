"""Which keys a query may attend to, from `lengths` and `mask`: what the parts of attention written in torch share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks

Lengths = Tensor | Sequence[int] | None


def prepare(
    function: str, scores: Tensor, lengths: Lengths, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Checked scores over the temperature, in float32 at least and zero where they do not count; and where they do.

    Args:
        function: name for the errors.
        scores, lengths, mask, temperature: as in softmax.

    Returns:
        z and the bool tensor `keep`, both shaped like scores.
    """
    if not isinstance(scores, Tensor):
        raise _checks.type_error(function, "scores", scores, "a torch.Tensor")
    if not scores.dtype.is_floating_point:
        raise _checks.dtype_error(function, "scores", scores.dtype, "float32, float64, bfloat16 or float16")
    if not scores.ndim:
        raise _checks.ShapeError(f"{function}: scores has shape (), expected a last dimension of keys")
    check_temperature(function, temperature)
    keep = scores != -math.inf
    allowed = allowed_keys(function, scores, lengths, mask)
    if allowed is not None:
        keep = keep & allowed
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    z = scores.masked_fill(~keep, 0)
    return (z if temperature == 1 else z / temperature), keep


def check_temperature(function: str, temperature: object) -> None:
    """Raises ValueError unless temperature is a finite number above zero."""
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise ValueError(f"{function}: temperature is {temperature!r}, expected a finite number above 0")


def allowed_keys(function: str, scores: Tensor, lengths: Lengths, mask: Tensor | None) -> Tensor | None:
    """Lengths and mask as one bool tensor that broadcasts to scores [B, ..., Tk]; None where there is neither."""
    allowed = None
    if mask is not None:
        allowed = as_mask(function, mask, "that of scores", scores.shape)
    if lengths is not None:
        if scores.ndim < 2:
            raise _checks.ShapeError(f"{function}: scores has shape {tuple(scores.shape)}, expected (B, ..., Tk)")
        valid = valid_keys(function, lengths, scores.shape[0], scores.shape[-1], scores.device)
        valid = valid.reshape(valid.shape[0], *[1] * (scores.ndim - 2), valid.shape[1])
        allowed = valid if allowed is None else allowed & valid
    return allowed


def as_mask(function: str, mask: Tensor, symbols: str, shape: Sequence[int]) -> Tensor:
    """A bool mask broadcast to `shape`, which errors call `symbols`."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise _checks.dtype_error(function, "mask", getattr(mask, "dtype", type(mask).__name__), "torch.bool")
    return expanded(function, "mask", mask, symbols, shape)


def as_bias(function: str, bias: Tensor, symbols: str, shape: Sequence[int]) -> Tensor:
    """A floating-point bias broadcast to `shape`."""
    if not isinstance(bias, Tensor) or not bias.dtype.is_floating_point:
        got = getattr(bias, "dtype", type(bias).__name__)
        raise _checks.dtype_error(function, "bias", got, "a floating-point dtype")
    return expanded(function, "bias", bias, symbols, shape)


def expanded(function: str, name: str, t: Tensor, symbols: str, shape: Sequence[int]) -> Tensor:
    """A view of t broadcast to `shape`."""
    try:
        return t.expand(shape)
    except RuntimeError:
        raise _checks.shape_error(function, name, t.shape, symbols, shape) from None


def as_lengths(function: str, lengths: Tensor | Sequence[int], B: int, Tk: int) -> Tensor:
    """Lengths as a tensor of integers [B]; raises for those that do not fit."""
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths)
    if lengths.dtype.is_floating_point or lengths.dtype is torch.bool:
        raise _checks.dtype_error(function, "lengths", lengths.dtype, "an integer dtype")
    _checks.check_shape(function, "lengths", lengths.shape, "(B,)", (B,))
    if lengths.numel() and not torch.compiler.is_compiling() and lengths.device.type != "meta":
        lowest, highest = (int(n) for n in lengths.aminmax())
        _checks.check_lengths(function, lowest, highest, Tk)
    return lengths


def valid_keys(function: str, lengths: Tensor | Sequence[int], B: int, Tk: int, device: torch.device) -> Tensor:
    """Bool [B, Tk], true for the first lengths[b] keys of row b; raises for lengths that do not fit."""
    lengths = as_lengths(function, lengths, B, Tk)
    return torch.arange(Tk, device=device) < lengths.to(device).unsqueeze(-1)
