"""Attention as functions: scores, softmax and context as one differentiable operation, on CPUs and CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _backends, _checks, _devices, _paths
from ._attention_checks import ACTIVATIONS, additive_score, check_scale, check_shapes, function_of
from ._attention_masks import as_mask, expanded
from ._attention_operators import attention
from ._tensor_checks import NARROW_DTYPES, as_lengths, check_floats, check_like, check_memory, is_plain

__all__ = ["additive_attention", "additive_scores", "dot_attention", "dot_scores"]

_autocast = torch.is_autocast_enabled


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    activation: str = "tanh",
    scale: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of Bahdanau et al. (2015, arXiv 1409.0473) on queries and keys that have been projected.

    score[q, k] = sum over d of v[d] f(query[q, d] + key[k, d]), softmax over k of scale * score + bias, weighted sum of
    the values. Memory grows with Tq*Tk, not with Tq*Tk*D; gradients flow through the weights as well.

    Args:
        query: [B, Tq, D]; float32 or float64, bfloat16 and float16 with sums in float32.
        key: [B, Tk, D].
        value: [B, Tk, Dv].
        v: [D].
        activation: f, "tanh" or "relu".
        scale: what scores are multiplied by, 1/temperature.
        lengths: [B] integers in [0, Tk], the keys of each row that are real; clamped, not checked, on a GPU.
        mask: bool [B, Tq, Tk], or broadcast to it; true where a key may be attended.
        bias: [B, Tq, Tk], or broadcast to it, of query's dtype; added to the scaled scores, -inf hides a key.

    Returns:
        context [B, Tq, Dv] and weights [B, Tq, Tk]. A query that may attend to nothing has zeros, and zero gradients.

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> q, k = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
        >>> context, weights = additive_attention(q, k, k, torch.ones(4))
    """
    score = additive_score("additive_attention", activation)
    return _attend(score, query, key, value, v, scale, lengths, mask, bias)


def dot_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of Luong et al. (2015, arXiv 1508.04025) with the score query . key, one head of any width.

    weights = softmax over k of scale * (query[q] . key[k]) + bias, which are returned and differentiable; scale
    1/sqrt(D) is that of Vaswani et al. (2017, arXiv 1706.03762).

    Args:
        query: [B, Tq, D]; float32 or float64, bfloat16 and float16 with sums in float32.
        key: [B, Tk, D].
        value: [B, Tk, Dv].
        scale, lengths, mask, bias: as in additive_attention().

    Returns:
        context [B, Tq, Dv] and weights [B, Tq, Tk]. A query that may attend to nothing has zeros, and zero gradients.

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> q, k = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
        >>> context, weights = dot_attention(q, k, k, scale=0.5)
    """
    return _attend("dot", query, key, value, None, scale, lengths, mask, bias)


def additive_scores(query: Tensor, key: Tensor, v: Tensor, *, activation: str = "tanh") -> Tensor:
    """The scores of additive attention alone: sum over d of v[d] f(query[q, d] + key[k, d]).

    Args:
        query: [B, Tq, D]; float32 or float64, bfloat16 and float16 with sums in float32.
        key: [B, Tk, D].
        v: [D].
        activation: f, "tanh" or "relu".

    Returns:
        scores [B, Tq, Tk]; no array of size Tq*Tk*D is made.

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> scores = additive_scores(torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(4))
    """
    score = additive_score("additive_scores", activation)
    (query, key, v), dtype = _cast(query, key, v)
    _check_tensors("additive_scores", {"query": query, "key": key, "v": v})
    return _in_kernel_dtype(dtype, score, query, key, None, v)[1]


def dot_scores(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    """The scores of dot attention alone, scale * (query[q] . key[k]), by torch.

    Args:
        query: [B, Tq, D].
        key: [B, Tk, D].
        scale: what scores are multiplied by.

    Returns:
        scores [B, Tq, Tk].

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> scores = dot_scores(torch.ones(2, 3, 4), torch.ones(2, 5, 4))
    """
    (query, key), _ = _cast(query, key)
    _check_tensors("dot_scores", {"query": query, "key": key})
    for name, t in (("query", query), ("key", key)):
        check_memory("dot_scores", name, t)
    scale = check_scale("dot_scores", scale)
    scores = torch.bmm(query, key.transpose(1, 2))
    return scores if scale == 1 else scores * scale


def _attend(score, query, key, value, v, scale, lengths, mask, bias) -> tuple[Tensor, Tensor]:
    function = function_of(score)
    if lengths is mask is bias is None and isinstance(query, Tensor) and not (_paths.is_watched() or _autocast("cpu")):
        scale = check_scale(function, scale)
        call = _backends.attention_of(query).prepare(score, query, key, value, v, scale)
        if call is not None:
            return attention(score, query, key, value, v, scale=scale, call=call)
    (query, key, value, v, bias), dtype = _cast(query, key, value, v, bias)
    has_v = score in ACTIVATIONS
    if not _fit(query, key, value, v, has_v):
        named = {"query": query, "key": key, "value": value}
        _check_tensors(function, named | {"v": v} if has_v else named)
    scale = check_scale(function, scale)
    (B, Tq, _), Tk = query.shape, key.shape[1]
    if lengths is not None:
        lengths = as_lengths(function, lengths, B, query, "query", Tk)
    if mask is not None:
        mask = as_mask(function, mask, "(B, Tq, Tk)", (B, Tq, Tk), query, "query")
    if bias is not None:
        _check_tensor(function, "bias", bias, query)
        bias = expanded(function, "bias", bias, "(B, Tq, Tk)", (B, Tq, Tk))
    return _in_kernel_dtype(dtype, score, query, key, value, v, lengths, mask, bias, scale)


def _cast(*tensors: object) -> tuple[tuple, torch.dtype | None]:
    """The tensors as autocast wants them, and the dtype of the results (that of the first)."""
    device = "cuda" if isinstance(tensors[0], Tensor) and tensors[0].is_cuda else "cpu"
    if _autocast(device):
        narrow = torch.get_autocast_dtype(device)
        kinds = (torch.float32, torch.bfloat16, torch.float16)
        tensors = tuple(t.to(narrow) if isinstance(t, Tensor) and t.dtype in kinds else t for t in tensors)
    return tensors, getattr(tensors[0], "dtype", None)


def _in_kernel_dtype(dtype, score, query, key, value, v, lengths=None, mask=None, bias=None, scale=1.0):
    if dtype in _backends.attention_of(query).DTYPES:
        return attention(score, query, key, value, v, lengths, mask, bias, scale)
    query, key, value, v, bias = (None if t is None else t.float() for t in (query, key, value, v, bias))
    context, weights = attention(score, query, key, value, v, lengths, mask, bias, scale)
    return context.to(dtype), weights.to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _fit(query: object, key: object, value: object, v: object, has_v: bool) -> bool:
    """Whether a quick look shows that _check_tensors() would find nothing."""
    if not (is_plain(query) and is_plain(key, query) and is_plain(value, query)):
        return False
    if not query.ndim == key.ndim == value.ndim == 3:
        return False
    (B, _, D), (B_k, Tk, D_k), (B_v, Tk_v, _) = query.shape, key.shape, value.shape
    if has_v and not (is_plain(v, query) and v.shape == (D,)):
        return False
    return B == B_k == B_v and Tk == Tk_v and D == D_k


def _check_tensors(function: str, named: dict[str, object]) -> None:
    for name, t in named.items():
        _check_tensor(function, name, t, named["query"])
    check_shapes(function, {name: t.shape for name, t in named.items()})


def _check_tensor(function: str, name: str, t: object, query: Tensor) -> None:
    check_floats(function, name, t)
    check_like(function, name, t, query, "query")
    if reason := _devices.why_not(t.device.type):
        raise _checks.device_error(function, name, t.device, f"a device with kernels: {reason}")
    if t.dtype in NARROW_DTYPES:  # converted by torch
        check_memory(function, name, t)
