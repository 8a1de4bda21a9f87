"""Additive attention as one differentiable operation: `additive_attention`, over the kernels of `_core`.

A registered operator serves eager code, autograd and torch.compile alike. Derivatives of second order differentiate the
oracle, reference.additive_attention().
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _core, reference
from .threads import current as current_threads

__all__ = ["additive_attention"]

_FUNCTION = "additive_attention"
_ARGS = "Tensor query, Tensor key, Tensor value, Tensor v, Tensor? lengths, Tensor? mask"
_lib = torch.library.Library("fastrnn", "FRAGMENT")
_lib.define(f"additive_attention({_ARGS}) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
_lib.define(
    f"additive_attention_backward({_ARGS}, Tensor weights, Tensor dcontext, Tensor? dweights) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of Bahdanau et al. (2015, arXiv 1409.0473) on queries and keys that have been projected.

    score[q, k] = sum over d of v[d] tanh(query[q, d] + key[k, d]), softmax over k, weighted sum of the values. Memory
    grows with Tq*Tk, not with Tq*Tk*D; gradients flow through the weights as well.

    Args:
        query: [B, Tq, D]; float32 or float64, bfloat16 and float16 through float32.
        key: [B, Tk, D].
        value: [B, Tk, Dv].
        v: [D].
        lengths: [B] integers in [0, Tk], the keys of each row that are real.
        mask: bool [B, Tq, Tk], or broadcast to it; true where a key may be attended.

    Returns:
        context [B, Tq, Dv] and weights [B, Tq, Tk]. A query that may attend to nothing has zeros, and zero gradients.

    Raises:
        ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.

    Example:
        >>> q, k = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
        >>> context, weights = additive_attention(q, k, k, torch.ones(4))
    """
    lengths, mask = _check(query, key, value, v, lengths, mask)
    dtype = query.dtype
    if torch.is_autocast_enabled("cpu") and dtype is torch.float32:
        dtype = torch.get_autocast_dtype("cpu")
    if dtype in (torch.bfloat16, torch.float16):
        wide = (t.to(dtype).float() for t in (query, key, value, v))
        context, weights = torch.ops.fastrnn.additive_attention(*wide, lengths, mask)
        return context.to(dtype), weights.to(dtype)
    return torch.ops.fastrnn.additive_attention(query, key, value, v, lengths, mask)


def _check(query: object, key: object, value: object, v: object, lengths: object, mask: object):
    named = {"query": (query, 3), "key": (key, 3), "value": (value, 3), "v": (v, 1)}
    for name, (t, rank) in named.items():
        if not isinstance(t, Tensor):
            raise _checks.type_error(_FUNCTION, name, t, "a torch.Tensor")
        if not t.dtype.is_floating_point:
            raise _checks.dtype_error(_FUNCTION, name, t.dtype, "float32, float64, bfloat16 or float16")
        if t.dtype is not query.dtype:
            raise _checks.dtype_error(_FUNCTION, name, t.dtype, f"{query.dtype} (the dtype of query)")
        if t.device.type not in ("cpu", "meta"):
            raise _checks.device_error(_FUNCTION, name, t.device, "cpu: attention has no CUDA kernel yet")
        if t.device != query.device:
            raise _checks.device_error(_FUNCTION, name, t.device, f"{query.device} (the device of query)")
        if t.layout is not torch.strided:
            raise _checks.DeviceError(f"{_FUNCTION}: {name} has layout {t.layout}, expected torch.strided")
        _checks.check_rank(_FUNCTION, name, t.shape, {3: "(B, T, D)", 1: "(D)"}[rank])
    (B, Tq, D), Tk = query.shape, key.shape[1]
    _checks.check_shape(_FUNCTION, "key", key.shape, "(B, Tk, D)", (B, Tk, D))
    _checks.check_shape(_FUNCTION, "value", value.shape, "(B, Tk, Dv)", (B, Tk, value.shape[2]))
    _checks.check_shape(_FUNCTION, "v", v.shape, "(D,)", (D,))
    if lengths is not None:
        if not isinstance(lengths, Tensor):
            lengths = torch.as_tensor(lengths)
        if lengths.dtype.is_floating_point or lengths.dtype is torch.bool:
            raise _checks.dtype_error(_FUNCTION, "lengths", lengths.dtype, "an integer dtype")
        _checks.check_shape(_FUNCTION, "lengths", lengths.shape, "(B,)", (B,))
        lengths = lengths.to(torch.int64)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
            raise _checks.dtype_error(_FUNCTION, "mask", getattr(mask, "dtype", type(mask).__name__), "torch.bool")
        try:
            mask = mask.expand(B, Tq, Tk)
        except RuntimeError:
            raise _checks.shape_error(_FUNCTION, "mask", mask.shape, "(B, Tq, Tk)", (B, Tq, Tk)) from None
    return lengths, mask


# ---------------------------------------------------------------------------------------------------------------------
# Operators


def _dense(t: Tensor | None) -> Tensor | None:
    if t is None:
        return None
    t = t.resolve_neg().contiguous()
    return t.clone() if t.data_ptr() % t.element_size() else t


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _arguments(query, key, value, v, lengths, mask) -> tuple:
    """The call as _core takes it, and the tensors whose memory it reads."""
    _check(query, key, value, v, lengths, mask)
    if query.dtype not in (torch.float32, torch.float64):
        raise _checks.dtype_error(_FUNCTION, "query", query.dtype, "torch.float32 or torch.float64")
    tensors = [_dense(t) for t in (query, key, value, v, lengths)]
    (B, Tq, D), (_, Tk, Dv) = query.shape, value.shape
    if lengths is not None and lengths.numel():
        lowest, highest = (int(n) for n in lengths.aminmax())
        _checks.check_lengths(_FUNCTION, lowest, highest, Tk)
    strides = [0, 0, 0] if mask is None else list(mask.stride())
    call = _core.Attention(
        query.element_size(), B, Tq, Tk, D, Dv, *map(_address, tensors), _address(mask), strides
    )  # fmt: skip
    return call, (tensors, mask)


def _forward(query, key, value, v, lengths, mask):
    call, _owners = _arguments(query, key, value, v, lengths, mask)
    (B, Tq, _), (_, Tk, Dv) = query.shape, value.shape
    context, weights = query.new_empty(B, Tq, Dv), query.new_empty(B, Tq, Tk)
    if B and Tq:
        _core.additive_forward(call, context.data_ptr(), weights.data_ptr(), current_threads())
    return context, weights


def _backward(query, key, value, v, lengths, mask, weights, dcontext, dweights):
    call, _owners = _arguments(query, key, value, v, lengths, mask)
    weights, dcontext, dweights = _dense(weights), _dense(dcontext), _dense(dweights)
    _checks.check_shape(_FUNCTION, "weights", weights.shape, "(B, Tq, Tk)", (*query.shape[:2], key.shape[1]))
    _checks.check_shape(_FUNCTION, "dcontext", dcontext.shape, "(B, Tq, Dv)", (*query.shape[:2], value.shape[2]))
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value, v)]
    _core.additive_backward(
        call, weights.data_ptr(), dcontext.data_ptr(), _address(dweights), *map(_address, grads), current_threads()
    )
    return tuple(grads)


def _forward_fake(query, key, value, v, lengths, mask):
    (B, Tq, _), (_, Tk, Dv) = query.shape, value.shape
    return query.new_empty(B, Tq, Dv), query.new_empty(B, Tq, Tk)


def _backward_fake(query, key, value, v, lengths, mask, weights, dcontext, dweights):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value, v))


_lib.impl("additive_attention", _forward, "CPU")
_lib.impl("additive_attention_backward", _backward, "CPU")
torch.library.register_fake("fastrnn::additive_attention", _forward_fake, lib=_lib)
torch.library.register_fake("fastrnn::additive_attention_backward", _backward_fake, lib=_lib)


def _save_forward(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dcontext, dweights):
    query, key, value, v, lengths, mask, weights = ctx.saved_tensors
    if dcontext is None:
        dcontext = query.new_zeros(*query.shape[:2], value.shape[2])
    inputs = (query, key, value, v, lengths, mask)
    return *torch.ops.fastrnn.additive_attention_backward(*inputs, weights, dcontext, dweights), None, None


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate_twice(ctx, *above):
    """The derivative of the oracle's derivative."""
    query, key, value, v, lengths, mask, _, dcontext, dweights = ctx.saved_tensors
    given = (query, key, value, v, dcontext) + (() if dweights is None else (dweights,))

    def once(query, key, value, v, dcontext, dweights=None):
        (_, weights), vjp = torch.func.vjp(
            lambda *inputs: reference.additive_attention(*inputs, lengths, mask), query, key, value, v
        )
        return vjp((dcontext, torch.zeros_like(weights) if dweights is None else dweights))

    with torch.enable_grad():
        _, vjp = torch.func.vjp(once, *given)
        dquery, dkey, dvalue, dv, *rest = vjp(tuple(above))
    return dquery, dkey, dvalue, dv, None, None, None, rest[0], rest[1] if len(rest) > 1 else None


torch.library.register_autograd("fastrnn::additive_attention", _differentiate, setup_context=_save_forward, lib=_lib)
torch.library.register_autograd(
    "fastrnn::additive_attention_backward", _differentiate_twice, setup_context=_save_backward, lib=_lib
)
