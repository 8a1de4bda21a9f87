"""Which keys a query may attend to, from `lengths` and `mask`: what the parts of attention written in torch share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from ._tensor_checks import as_lengths, check_dense, check_device, check_floats, check_lengths_within, check_memory

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
    check_floats(function, "scores", scores)
    check_memory(function, "scores", scores)
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
    return (z if temperature == 1 else z / float(temperature)), keep


def check_temperature(function: str, temperature: object) -> None:
    """Raises ValueError unless temperature is a finite number above zero."""
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise ValueError(f"{function}: temperature is {temperature!r}, expected a finite number above 0")


def allowed_keys(function: str, scores: Tensor, lengths: Lengths, mask: Tensor | None) -> Tensor | None:
    """Lengths and mask as one bool tensor that broadcasts to scores [B, ..., Tk]; None where there is neither."""
    allowed = None
    if mask is not None:
        allowed = as_mask(function, mask, "that of scores", scores.shape, scores, "scores")
    if lengths is not None:
        if scores.ndim < 2:
            raise _checks.ShapeError(f"{function}: scores has shape {tuple(scores.shape)}, expected (B, ..., Tk)")
        lengths = as_lengths(function, lengths, scores.shape[0], scores, "scores", scores.shape[-1])
        valid = valid_keys(function, lengths, scores.shape[-1])
        valid = valid.reshape(valid.shape[0], *[1] * (scores.ndim - 2), valid.shape[1])
        allowed = valid if allowed is None else allowed & valid
    return allowed


def as_mask(function: str, mask: Tensor, symbols: str, shape: Sequence[int], like: Tensor, name: str) -> Tensor:
    """A bool mask broadcast to `shape`, which errors call `symbols`, on the device of the argument `name`."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise _checks.dtype_error(function, "mask", getattr(mask, "dtype", type(mask).__name__), "torch.bool")
    check_dense(function, "mask", mask)
    check_device(function, "mask", mask, like, name)
    return expanded(function, "mask", mask, symbols, shape)


def as_bias(function: str, bias: Tensor, symbols: str, shape: Sequence[int], like: Tensor, name: str) -> Tensor:
    """A floating-point bias broadcast to `shape`, on the device of the argument `name` and in its dtype."""
    check_floats(function, "bias", bias)
    check_device(function, "bias", bias, like, name)
    check_memory(function, "bias", bias)
    return expanded(function, "bias", bias.to(like.dtype), symbols, shape)


def expanded(function: str, name: str, t: Tensor, symbols: str, shape: Sequence[int]) -> Tensor:
    """A view of t broadcast to `shape`."""
    check_memory(function, name, t)
    if t.shape == shape:
        return t
    try:
        return t.expand(shape)
    except RuntimeError:
        raise _checks.shape_error(function, name, t.shape, symbols, shape) from None


def hidden_keys(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Bool [..., Tk], true for a key that no query may attend to, of a mask and a bias [..., Tq, Tk]; None without them."""
    if bias is not None:
        finite = bias.detach() != -math.inf
        mask = finite if mask is None else mask & finite
    return None if mask is None else ~mask.any(-2)


def cleared(t: Tensor, hidden: Tensor | None) -> Tensor:
    """t [..., Tk, *] with zeros at the keys that are hidden: zero times NaN would be NaN in a product."""
    return t if hidden is None else t.masked_fill(hidden.unsqueeze(-1), 0)


def valid_keys(function: str, lengths: Tensor, Tk: int) -> Tensor:
    """Bool [B, Tk], true for the first lengths[b] keys of row b; raises for lengths beyond Tk or below zero."""
    check_lengths_within(function, lengths, Tk)
    return torch.arange(Tk, device=lengths.device) < lengths.unsqueeze(-1)
