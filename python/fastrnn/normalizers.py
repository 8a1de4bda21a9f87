"""What turns attention scores into weights, over the last dimension: one table, `NORMALIZERS`, of name -> function.

    softmax     exp(z) / sum exp(z)
    sparsemax   max(z - tau, 0), tau such that the sum is one (Martins & Astudillo 2016, arXiv 1602.02068)
    entmax15    max(z / 2 - tau, 0)^2, likewise (Peters, Niculae & Martins 2019, arXiv 1905.05702)
    sigmoid     1 / (1 + exp(-z)), each key by itself
    hardmax     one for the highest score, the first of several
    monotonic   the probability of stopping at each key on a walk from left to right (_monotonic.py)

z is scores / temperature. A key that `lengths` or `mask` leaves out, or whose score is -inf, has weight zero and gives
its score a zero gradient, whatever the score is, NaN included; so does every key of a row that leaves out all of them.
bfloat16 and float16 are computed in float32. All can be differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._attention_masks import Lengths, prepare
from ._monotonic import monotonic

__all__ = ["NORMALIZERS", "entmax15", "get", "hardmax", "monotonic", "sigmoid", "softmax", "sparsemax"]


def softmax(scores: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Exponentials that sum to one.

    Args:
        scores: [..., Tk]; float32, float64, bfloat16 or float16.
        lengths: [B] integers in [0, Tk], how many keys of each entry of the first dimension are real.
        mask: bool, broadcast to scores; true where a key may be attended.
        temperature: above zero; scores are divided by it.

    Returns:
        Weights [..., Tk]. Rows sum to one, or are zero where there is no key.

    Raises:
        ShapeError, DTypeError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> softmax(torch.zeros(2, 4), lengths=[2, 0]).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    z, keep = prepare("softmax", scores, lengths, mask, temperature)
    return z.masked_fill(~keep, torch.finfo(z.dtype).min).softmax(-1).masked_fill(~keep, 0).to(scores.dtype)


def sparsemax(
    scores: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """The point of the probability simplex nearest to the scores (Martins & Astudillo 2016): many weights are exactly
    zero.

    Args and returns as softmax.

    Example:
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0])).tolist()
        [0.75, 0.25, 0.0]
    """
    z, keep = prepare("sparsemax", scores, lengths, mask, temperature)
    return _Threshold.apply(z, keep, 1.0).to(scores.dtype)


def entmax15(
    scores: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Between softmax and sparsemax, 1.5-entmax (Peters et al. 2019), exact by sorting: smooth, with exact zeros.

    Args and returns as softmax.

    Example:
        >>> entmax15(torch.tensor([2.0, 0.0, -3.0])).tolist()
        [1.0, 0.0, 0.0]
    """
    z, keep = prepare("entmax15", scores, lengths, mask, temperature)
    return _Threshold.apply(z, keep, 0.5).square().to(scores.dtype)


def sigmoid(scores: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """A weight between zero and one for each key by itself; rows do not sum to one.

    Args as softmax.

    Example:
        >>> sigmoid(torch.zeros(1, 3), lengths=[2]).tolist()
        [[0.5, 0.5, 0.0]]
    """
    z, keep = prepare("sigmoid", scores, lengths, mask, temperature)
    return z.sigmoid().masked_fill(~keep, 0).to(scores.dtype)


def hardmax(scores: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """One for the key with the highest score, the first of several; passes no gradient to the scores.

    Args as softmax.

    Example:
        >>> hardmax(torch.tensor([1.0, 3.0, 3.0])).tolist()
        [0.0, 1.0, 0.0]
    """
    z, keep = prepare("hardmax", scores.detach() if isinstance(scores, Tensor) else scores, lengths, mask, temperature)
    z = z.masked_fill(~keep, -math.inf)
    if not z.shape[-1]:
        return z.to(scores.dtype)
    best = z.argmax(-1, keepdim=True)
    weights = torch.zeros_like(z).scatter(-1, best, 1).masked_fill(~keep, 0)
    return weights.masked_fill(z.isnan().any(-1, keepdim=True) & keep, math.nan).to(scores.dtype)


class _Threshold(torch.autograd.Function):
    """s = max(factor z - tau, 0) with tau such that sum s = 1 (factor 1, sparsemax) or sum s^2 = 1 (factor 1/2,
    entmax15).

    Among the sorted scores those above tau come first, so that trying every count of them finds tau exactly. With w = 1
    where s > 0 (sparsemax) or w = s (entmax15), dtau = sum w dz / sum w; therefore, with u the gradient of s where s >
    0, the gradient of z is factor (u - w sum u / sum w). No gradient passes through the sort.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, keep: Tensor, factor: float) -> Tensor:
        if not z.shape[-1]:
            return z.clone()
        z = z.masked_fill(~keep, -math.inf)
        top = z.amax(-1, keepdim=True)
        # A score one below the highest is at or below tau, so this changes no weight and keeps the sums small.
        z = (factor * (z - top.masked_fill(top == -math.inf, 0))).clamp(min=-2)
        ordered = z.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        mean = ordered.cumsum(-1) / count
        if factor == 1:
            taus = mean - 1 / count
            inside = taus < ordered
        else:
            variance = ordered.square().cumsum(-1) / count - mean.square()
            taus = mean - (1 / count - variance).clamp(min=0).sqrt()
            inside = taus <= ordered
        tau = taus.gather(-1, inside.sum(-1, keepdim=True).clamp(min=1) - 1)
        # One Newton step takes away the rounding error of the running sums.
        s = (z - tau).clamp(min=0)
        w = (s > 0).to(s.dtype) if factor == 1 else 2 * s
        tau = tau + (s.pow(1 / factor).sum(-1, keepdim=True) - 1) / w.sum(-1, keepdim=True)
        return (z - tau).clamp(min=0).masked_fill(~keep, 0)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.factor = inputs[2]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, ds: Tensor) -> tuple[Tensor, None, None]:
        (s,) = ctx.saved_tensors
        inside = s > 0
        u = ds * inside
        w = inside.to(s.dtype) if ctx.factor == 1 else s
        total = w.sum(-1, keepdim=True)
        dz = u - w * (u.sum(-1, keepdim=True) / total.masked_fill(total == 0, 1))
        return ctx.factor * dz, None, None


def get(name: str | Callable[..., Tensor], function: str = "normalizers.get") -> Callable[..., Tensor]:
    """The function of this name; a function is returned as it is.

    Args:
        name: a key of NORMALIZERS, or a function with softmax's arguments.
        function: name for the error.

    Raises:
        ValueError: there is none; the message lists them.

    Example:
        >>> get("sparsemax") is sparsemax
        True
    """
    if callable(name):
        return name
    if name not in NORMALIZERS:
        raise ValueError(f"{function}: normalizer is {name!r}, expected one of {', '.join(map(repr, NORMALIZERS))}")
    return NORMALIZERS[name]


NORMALIZERS: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "sigmoid": sigmoid,
    "hardmax": hardmax,
    "monotonic": monotonic,
}
