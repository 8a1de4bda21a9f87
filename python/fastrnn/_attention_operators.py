"""Attention with any score function of `_core` as one differentiable operation, over three call paths to one backend.

1. eager, no gradient: a raw call;
2. eager with gradient: a classic autograd.Function around the same call;
3. torch.compile, export, torch.func and everything else that has to see an operator: fastrnn::attention and its
backward.

Second derivatives differentiate the oracle, reference.attention().

The order everywhere: score, query, key, value, v, lengths, mask, bias, scale. Without value the raw scores are wanted:
they take the place of the weights, and context is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backends, _checks, _paths, reference
from ._attention_checks import ACTIVATIONS
from ._attention_kernels import SCORES, new_gradients, new_outputs
from ._transforms import transformable

_ARGS = (
    "str score, Tensor query, Tensor key, Tensor? value, Tensor? v, Tensor? lengths, Tensor? mask, Tensor? bias, "
    "float scale"
)
_lib = torch.library.Library("fastrnn", "FRAGMENT")
_lib.define(f"attention({_ARGS}) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
_lib.define(
    f"attention_backward({_ARGS}, Tensor weights, Tensor? dcontext, Tensor? dweights, bool with_dbias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def attention(
    score: str,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    v: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    call: object = None,
) -> tuple[Tensor, Tensor]:
    """Context and weights of arguments that have been checked; mask and bias [B, Tq, Tk], lengths int64.

    call: what prepare() of the backend has made of them, where _paths.is_watched() is false.
    """
    tensors = (query, key, value, v, lengths, mask, bias)
    if call is None and (_paths.is_watched() or _paths.is_exotic(tensors)):
        return _forward_anywhere(score, *tensors, scale)
    if torch.is_grad_enabled() and _paths.wants_gradient(tensors):
        return _Eager.apply(score, *tensors, scale, call)
    return _backends.attention_of(query).forward(score, *tensors, scale, call)


class _Eager(torch.autograd.Function):
    """Path 2."""

    @staticmethod
    def forward(ctx, score, query, key, value, v, lengths, mask, bias, scale, call):
        forward = _backends.attention_of(query).forward
        context, weights = forward(score, query, key, value, v, lengths, mask, bias, scale, call)
        ctx.save_for_backward(query, key, value, v, lengths, mask, bias, weights)
        ctx.score, ctx.scale = score, scale
        ctx.set_materialize_grads(False)
        return context, weights

    @staticmethod
    def backward(ctx, dcontext, dweights):
        raw = not (torch.is_grad_enabled() or _paths.is_watched() or _paths.is_exotic((dcontext, dweights)))
        return *_differentiate(ctx, dcontext, dweights, raw), None


# ---------------------------------------------------------------------------------------------------------------------
# Operators


def _check_call(score, query, key, value, v, lengths, mask, bias) -> None:
    """What has to hold for memory to be read safely; the public functions have checked it, other callers may not."""
    f = "attention"
    if score not in SCORES:
        raise ValueError(f"{f}: score is {score!r}, expected one of {', '.join(SCORES)}")
    kinds = _backends.attention_of(query).DTYPES
    if query.dtype not in kinds:
        raise _checks.dtype_error(f, "query", query.dtype, " or ".join(map(str, kinds)))
    _checks.check_rank(f, "query", query.shape, "(B, Tq, D)")
    _checks.check_rank(f, "key", key.shape, "(B, Tk, D)")
    (B, Tq, D), Tk = query.shape, key.shape[1]
    if (v is not None) != (score in ACTIVATIONS):
        raise ValueError(f"{f}: v is {'absent' if v is None else 'given'}, expected the opposite for {score!r}")
    shapes = {"key": (key, (B, Tk, D)), "v": (v, (D,)), "bias": (bias, (B, Tq, Tk))}
    shapes["value"] = (value, (B, Tk, value.shape[-1] if value is not None and value.ndim else 0))
    for name, (t, shape) in shapes.items():
        _check_like(f, name, t, shape, query)
    for name, t, shape, dtype in (("lengths", lengths, (B,), torch.int64), ("mask", mask, (B, Tq, Tk), torch.bool)):
        _check_like(f, name, t, shape, query, dtype)


def _check_like(function, name, t, shape, query, dtype=None) -> None:
    if t is None:
        return
    _checks.check_shape(function, name, t.shape, "its shape", shape)
    if t.dtype is not (dtype or query.dtype):
        raise _checks.dtype_error(function, name, t.dtype, dtype or f"{query.dtype} (the dtype of query)")
    if t.device != query.device:
        raise _checks.device_error(function, name, t.device, f"{query.device} (the device of query)")


def _forward_op(score, query, key, value, v, lengths, mask, bias, scale):
    _check_call(score, query, key, value, v, lengths, mask, bias)
    return _backends.attention_of(query).forward(score, query, key, value, v, lengths, mask, bias, scale)


def _backward_op(score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias):
    _check_call(score, query, key, value, v, lengths, mask, bias)
    B, Tq, Tk = *query.shape[:2], key.shape[1]
    above = {"weights": (weights, (B, Tq, Tk)), "dweights": (dweights, (B, Tq, Tk))}
    if value is not None:
        above["dcontext"] = (dcontext, (B, Tq, value.shape[2]))
    for name, (t, shape) in above.items():
        if t is None and name == ("dweights" if value is None else "dcontext"):
            raise ValueError(f"attention_backward: {name} is None, expected a tensor of shape {shape}")
        _check_like("attention_backward", name, t, shape, query)
    return _backends.attention_of(query).backward(
        score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias
    )  # fmt: skip


def _save_forward(ctx, inputs, output):
    score, *tensors, scale = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.score, ctx.scale = score, scale
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dcontext, dweights, raw=False):
    query, key, value, v, lengths, mask, bias, weights = ctx.saved_tensors
    if value is not None and dcontext is None:
        dcontext = query.new_zeros(*query.shape[:2], value.shape[2])
    if value is None:
        dcontext, dweights = None, torch.zeros_like(weights) if dweights is None else dweights
    wanted = bias is not None and ctx.needs_input_grad[7]
    inputs = (ctx.score, query, key, value, v, lengths, mask, bias, ctx.scale)
    call = _backends.attention_of(query).backward if raw else _backward_anywhere
    dquery, dkey, dvalue, dv, dbias = call(*inputs, weights, dcontext, dweights, wanted)
    present = (value is not None, v is not None, wanted)
    dvalue, dv, dbias = (t if there else None for t, there in zip((dvalue, dv, dbias), present))
    return None, dquery, dkey, dvalue, dv, None, None, dbias, None


def _save_backward(ctx, inputs, output):
    score, *tensors, scale, weights, dcontext, dweights, with_dbias = inputs
    ctx.save_for_backward(*tensors, dcontext, dweights)
    ctx.score, ctx.scale, ctx.with_dbias = score, scale, with_dbias


def _differentiate_twice(ctx, *above):
    """The derivative of the oracle's derivative."""
    query, key, value, v, lengths, mask, bias, dcontext, dweights = ctx.saved_tensors
    arguments = {"query": query, "key": key, "value": value, "v": v, "bias": bias}
    given = {name: t for name, t in arguments.items() if t is not None}
    ups = {name: t for name, t in (("dcontext", dcontext), ("dweights", dweights)) if t is not None}

    def once(*tensors):
        first, second = tensors[: len(given)], dict(zip(ups, tensors[len(given) :]))

        def oracle(*inputs):
            named = {"value": None} | dict(zip(given, inputs))
            return reference.attention(ctx.score, lengths=lengths, mask=mask, scale=ctx.scale, **named)

        outs, vjp = torch.func.vjp(oracle, *first)
        return vjp(tuple(second.get(n, torch.zeros_like(o)) for n, o in zip(("dcontext", "dweights"), outs)))

    wanted = [d for d, t in zip(above, arguments.values()) if t is not None]
    if bias is not None and not ctx.with_dbias:
        wanted[-1] = torch.zeros_like(bias)
    with torch.enable_grad():
        _, vjp = torch.func.vjp(once, *given.values(), *ups.values())
        found = dict(zip((*given, *ups), vjp(tuple(wanted))))
    first = [found.get(name) for name in ("query", "key", "value", "v")]
    return None, *first, None, None, found.get("bias"), None, None, found.get("dcontext"), found.get("dweights"), None


for _device in ("CPU", "CUDA"):
    _lib.impl("attention", _forward_op, _device)
    _lib.impl("attention_backward", _backward_op, _device)
torch.library.register_fake("fastrnn::attention", new_outputs, lib=_lib)
torch.library.register_fake("fastrnn::attention_backward", new_gradients, lib=_lib)
torch.library.register_autograd("fastrnn::attention", _differentiate, setup_context=_save_forward, lib=_lib)
torch.library.register_autograd(
    "fastrnn::attention_backward", _differentiate_twice, setup_context=_save_backward, lib=_lib
)
_forward_anywhere = transformable(torch.ops.fastrnn.attention.default, _save_forward, _differentiate)
_backward_anywhere = transformable(
    torch.ops.fastrnn.attention_backward.default, _save_backward, _differentiate_twice
)  # fmt: skip
