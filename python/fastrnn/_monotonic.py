"""Monotonic attention (Raffel et al. 2017, arXiv 1704.00784): a walk over the keys that never goes back.

For query i the walk starts where that of query i-1 stopped and stops at key j with probability p[i, j] =
sigmoid(score):

    q[i, j] = (1 - p[i, j-1]) q[i, j-1] + weights[i-1, j]        weights[i, j] = p[i, j] q[i, j]

The paper computes it in parallel as p cumprod(1 - p) cumsum(weights / cumprod(1 - p)), whose division has to be kept
from zero by a bound. Here nothing is divided: products and sums of numbers between zero and one, in either order of
work.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _checks
from ._attention_masks import Lengths, prepare

MODES = ("parallel", "recursive", "hard")


def monotonic(
    scores: Tensor,
    *,
    lengths: Lengths = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    mode: str = "parallel",
    previous: Tensor | None = None,
) -> Tensor:
    """The probability that the walk of each query stops at each key (Raffel et al. 2017).

    Args:
        scores: [..., Tq, Tk]; float32, float64, bfloat16 or float16.
        lengths: [B] integers in [0, Tk], how many keys of each entry of the first dimension are real.
        mask: bool, broadcast to scores; true where a walk may stop.
        temperature: above zero; scores are divided by it.
        mode: "parallel" takes log2(Tk) steps for each query, "recursive" Tq + Tk - 1 steps in all, along the diagonals;
            both are exact and differ in rounding only. "hard" stops at the first key with a score above zero; it passes
            no gradient.
        previous: [..., Tk], the weights of the query before the first; None for a walk that starts at key 0.

    Returns:
        Weights [..., Tq, Tk]. A row sums to one at most: what is missing has passed the last key, and stays away.

    Raises:
        ShapeError, DTypeError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> monotonic(torch.tensor([[-1.0, 2.0, 2.0], [-1.0, -1.0, 1.0]]), mode="hard").tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if mode not in MODES:
        raise ValueError(f"monotonic: mode is {mode!r}, expected one of {', '.join(map(repr, MODES))}")
    z, keep = prepare("monotonic", scores, lengths, mask, temperature)
    if z.ndim < 2:
        raise _checks.ShapeError(f"monotonic: scores has shape {tuple(scores.shape)}, expected (..., Tq, Tk)")
    entering = _entering(z, previous)
    if not z.numel():
        return z.to(scores.dtype)
    if mode == "hard":
        stop = (z.detach() > 0).to(z.dtype)
        stop, go, entering = stop, 1 - stop, entering.detach()
    else:
        stop, go = z.sigmoid(), (-z).sigmoid()
    stop, go = stop.masked_fill(~keep, 0), go.masked_fill(~keep, 1)
    walk = _along_diagonals if mode == "recursive" else _query_by_query
    return walk(stop, go, entering).to(scores.dtype)


def _entering(z: Tensor, previous: Tensor | None) -> Tensor:
    if previous is None:
        return pad(torch.ones_like(z[..., 0, :1]), (0, z.shape[-1] - 1)) if z.shape[-2] and z.shape[-1] else z[..., 0:0]
    if not isinstance(previous, Tensor):
        raise _checks.type_error("monotonic", "previous", previous, "a torch.Tensor")
    if not previous.dtype.is_floating_point:
        raise _checks.dtype_error("monotonic", "previous", previous.dtype, "the dtype of scores")
    expected = (*z.shape[:-2], z.shape[-1])
    _checks.check_shape("monotonic", "previous", previous.shape, "(..., Tk)", expected)
    return previous.to(z.dtype)


def _query_by_query(stop: Tensor, go: Tensor, entering: Tensor) -> Tensor:
    """The recurrence over keys as a scan (Hillis & Steele): after step s, q[j] holds the last 2^s terms that end in j.

    The products of `go` do not depend on the query before, so all queries have them computed at once.
    """
    products, span = [], 1
    factor = pad(go[..., :-1], (1, 0))  # q[j] = factor[j] q[j-1] + entering[j]
    while span < stop.shape[-1]:
        products.append((span, factor[..., span:].unbind(-2)))  # one unbind: each select would have a full gradient
        factor = pad(factor[..., span:] * factor[..., :-span], (span, 0))
        span *= 2
    rows = []
    for i, stop_i in enumerate(stop.unbind(-2)):
        q = entering
        for span, factors in products:
            q = torch.cat((q[..., :span], torch.addcmul(q[..., span:], factors[i], q[..., :-span])), -1)
        entering = stop_i * q
        rows.append(entering)
    return torch.stack(rows, -2)


def _along_diagonals(stop: Tensor, go: Tensor, entering: Tensor) -> Tensor:
    """The recurrence for all pairs with the same i + j at once: they need those of the diagonal before alone."""
    Tq, Tk = stop.shape[-2:]
    first = pad(entering, (0, Tq - 1)).unsqueeze(-1).unbind(-2)
    stops, gos = _skewed(stop).unbind(-2), _skewed(go).unbind(-2)
    q = weights = torch.zeros_like(stops[0])
    diagonals = []
    for d in range(Tq + Tk - 1):
        from_above = torch.cat((first[d], weights[..., :-1]), -1)
        q = torch.addcmul(from_above, gos[d - 1], q)  # nothing comes from the left of d = 0: q is zero there
        weights = stops[d] * q
        diagonals.append(weights)
    return _straight(torch.stack(diagonals, -2), Tk)


def _skewed(x: Tensor) -> Tensor:
    """[..., Tq, Tk] with row i moved right by i, and transposed: [..., Tq + Tk - 1, Tq], zero outside."""
    Tq, Tk = x.shape[-2:]
    flat = pad(x, (0, Tq)).flatten(-2)[..., : Tq * (Tk + Tq - 1)]
    return flat.unflatten(-1, (Tq, Tk + Tq - 1)).transpose(-1, -2)


def _straight(x: Tensor, Tk: int) -> Tensor:
    """The inverse of _skewed()."""
    Tq = x.shape[-1]
    flat = pad(x.transpose(-1, -2).flatten(-2), (0, Tq))
    return flat.unflatten(-1, (Tq, Tk + Tq))[..., :Tk]
