"""Attention on CPUs seen from torch: from tensors that have been checked to addresses for `_core`, and back.

The order everywhere: score, query, key, value, v, lengths, mask, bias, scale; mask and bias [B, Tq, Tk], lengths int64.
Without value the raw scores are wanted: they take the place of the weights, and context is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _core
from ._attention_checks import ACTIVATIONS, function_of
from ._attention_masks import cleared, hidden_keys
from ._memory import address_of, dense, in_place, kept_empty, kept_empty_like
from ._tensor_checks import check_lengths_within
from .threads import current as current_threads

DTYPES = (torch.float32, torch.float64)
SCORES = tuple(_core.SCORES)
_NOWHERE = [0, 0, 0]  # strides of what is absent
_empty_like = partial(torch.empty_like, memory_format=torch.contiguous_format)


def strides_of(pairs: Tensor | None) -> list[int]:
    """Strides of an array [B, Tq, Tk]; zeros for None."""
    return _NOWHERE if pairs is None else list(pairs.stride())


def _arguments(score, query, key, value, v, lengths, mask, bias, scale) -> tuple:
    """The call as _core takes it, and the tensors whose memory it reads."""
    f = function_of(score)
    named = {"query": query, "key": key, "value": value, "v": v, "lengths": lengths}
    tensors = [dense(f, name, t) for name, t in named.items()]
    mask, bias = in_place(f, "mask", mask), in_place(f, "bias", bias)
    (B, Tq, D), Tk, Dv = query.shape, key.shape[1], 0 if value is None else value.shape[2]
    if lengths is not None:
        check_lengths_within(f, lengths, Tk)
    addresses = [address_of(t) for t in tensors]
    if value is not None and not addresses[2]:
        addresses[2] = addresses[0] or 64  # empty; zero would ask for raw scores
    call = _core.Attention(
        score, query.element_size(), B, Tq, Tk, D, Dv, *addresses, address_of(mask), strides_of(mask), address_of(bias),
        strides_of(bias), scale,
    )  # fmt: skip
    return call, (tensors, mask, bias)


def prepare(score, query, key, value, v, scale) -> object | None:
    """The call as _core takes it where every argument is plain, right and in place; else None, and the slow path explains
    or copies. One pass, because this is what a decoder's step costs."""
    try:
        (B, Tq, D), Tk, (_, _, Dv) = query.shape, key.shape[1], value.shape
        dtype = query.dtype
        item = 4 if dtype is torch.float32 else 8
        if dtype not in DTYPES or not B * Tq * Tk * D * Dv or (v is None) is (score in ACTIVATIONS):
            return None
        addresses = []
        for t, shape in ((query, (B, Tq, D)), (key, (B, Tk, D)), (value, (B, Tk, Dv)), (v, (D,))):
            if t is None:
                addresses.append(0)
                continue
            if (
                (type(t) is not Tensor and type(t) is not Parameter)
                or t.shape != shape
                or t.dtype is not dtype
                or not t.is_cpu
                or not t.is_contiguous()
                or t.is_neg()
                or (t.storage_offset() + t.numel()) * item > t.untyped_storage().nbytes()
            ):
                return None
            address = t.data_ptr()
            if address % item:
                return None
            addresses.append(address)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # not tensors, sparse, another rank
    return _core.Attention(score, item, B, Tq, Tk, D, Dv, *addresses, 0, 0, _NOWHERE, 0, _NOWHERE, scale)


def _finite(tensors: Sequence[Tensor]) -> bool:
    """Whether sums are finite: a little more than whether elements are, and cheaper."""
    return all(math.isfinite(t.sum()) for t in tensors)


def _without_hidden(key, value, mask, bias):
    """Keys and values with zeros where `mask` and `bias` hide them from every query.

    The kernels multiply them by a weight of zero, which is not zero for NaN and infinity. That is rare enough to look
    at the results, which are small, and to compute them again.
    """
    hidden = hidden_keys(mask, bias)
    return cleared(key, hidden), cleared(value, hidden)


def forward(score, query, key, value, v, lengths, mask, bias, scale, call=None, again=True):
    """call: what prepare() has found, if anything."""
    if call is None:
        call, _owners = _arguments(score, query, key, value, v, lengths, mask, bias, scale)
    context, weights = new_outputs(score, query, key, value, v, lengths, mask, bias, scale, kept_empty)
    _core.attention_forward(call, context.data_ptr(), weights.data_ptr(), current_threads())
    if again and value is not None and (mask is not None or bias is not None) and not _finite((context,)):
        key, value = _without_hidden(key, value, mask, bias)
        return forward(score, query, key, value, v, lengths, mask, bias, scale, again=False)
    return context, weights


def backward(
    score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias, again=True
):
    call = prepare(score, query, key, value, v, scale) if lengths is mask is bias is None else None
    if call is None:
        call, _owners = _arguments(score, query, key, value, v, lengths, mask, bias, scale)
    named = {"weights": weights, "dcontext": dcontext, "dweights": dweights}
    weights, dcontext, dweights = (dense(function_of(score), name, t) for name, t in named.items())
    found = new_gradients(
        score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias, kept_empty_like
    )  # fmt: skip
    _core.attention_backward(
        call, weights.data_ptr(), address_of(dcontext), address_of(dweights), *map(address_of, found), current_threads()
    )
    if again and value is not None and (mask is not None or bias is not None) and not _finite(found):
        key, value = _without_hidden(key, value, mask, bias)
        return backward(
            score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias, False
        )
    return found


def new_outputs(score, query, key, value, v, lengths, mask, bias, scale, empty=Tensor.new_empty):
    (B, Tq, _), Tk = query.shape, key.shape[1]
    context = query.new_empty(0) if value is None else empty(query, B, Tq, value.shape[2])
    return context, empty(query, B, Tq, Tk)


def new_gradients(
    score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias,
    empty_like=_empty_like,
):  # fmt: skip
    like = (query, key, value, v, weights if with_dbias else None)
    return tuple(query.new_empty(0) if t is None else empty_like(t) for t in like)
