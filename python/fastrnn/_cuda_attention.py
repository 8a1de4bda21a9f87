"""Attention on CUDA seen from torch, with the interface of _attention_kernels.py.

What has the reciprocal of every query, key and column is a kernel: additive scores and their gradients. So are softmax
and its gradient. What is one long product is torch's (cuBLAS): dot scores, the context, and the gradients of both;
float32 products follow torch.backends.cuda.matmul.allow_tf32. bfloat16 and float16 have scores, weights and their
gradients in float32 until they are stored or enter a product. Work goes to the caller's current stream. Nothing
synchronises: values in `lengths` are clamped by the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cuda_kernels
from ._attention_checks import ACTIVATIONS, function_of
from ._attention_kernels import new_gradients, new_outputs, strides_of
from ._attention_masks import cleared, hidden_keys
from ._cuda_products import without_autocast
from ._memory import address_of, dense, in_place

DTYPES = _cuda_kernels.DTYPES


def prepare(score, query, key, value, v, scale) -> None:
    """Nothing: a call is more than addresses here."""


@without_autocast
def forward(score, query, key, value, v, lengths, mask, bias, scale, _call=None):
    call = _Call(score, query, key, value, v, lengths, mask, bias)
    context, weights = new_outputs(score, query, key, value, v, lengths, mask, bias, scale)
    if not weights.numel():
        return context.zero_(), weights
    if score in ACTIVATIONS:
        scores = call.wide_like(weights)
        call.run("additive_scores", ACTIVATIONS[score], call.inputs(), scores.data_ptr())
    else:
        scores = call.wide_product(call.query, call.key.transpose(1, 2), weights)
    if value is None:
        return context, weights if scores is weights else weights.copy_(scores)
    mask, bias = in_place(call.function, "mask", mask), in_place(call.function, "bias", bias)
    call.run(
        "attention_softmax", address_of(call.lengths), (address_of(mask), strides_of(mask)),
        (address_of(bias), strides_of(bias)), scale, scores.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    return torch.bmm(weights, call.real(call.value), out=context), weights


@without_autocast
def backward(score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias):
    call = _Call(score, query, key, value, v, lengths, mask, bias)
    found = new_gradients(
        score, query, key, value, v, lengths, mask, bias, scale, weights, dcontext, dweights, with_dbias
    )
    if not weights.numel():
        return tuple(t.zero_() for t in found)
    dquery, dkey, dvalue, dv, dbias = found
    named = {"weights": weights, "dcontext": dcontext, "dweights": dweights}
    weights, dcontext, dweights = (dense(call.function, name, t) for name, t in named.items())
    if value is None:
        g = dweights.to(call.wide)
    else:
        g = call.wide_product(dcontext, call.value.transpose(1, 2), torch.empty_like(weights))
        call.run(
            "attention_softmax_gradient", scale, weights.data_ptr(), address_of(dweights), g.data_ptr(),
            dbias.data_ptr() if with_dbias else 0,
        )  # fmt: skip
        torch.bmm(weights.transpose(1, 2), dcontext, out=dvalue)
    if score in ACTIVATIONS:
        sums, parts = call.wide_like(dquery), g.new_empty(query.shape[0], query.shape[2])
        outs = (g, dquery, dkey, sums, parts)
        call.run("additive_gradients", ACTIVATIONS[score], call.inputs(), *(t.data_ptr() for t in outs))
        dv.copy_(parts.sum(0))
    else:
        g = (g if value is not None else call.real(g, dim=2)).to(query.dtype)
        torch.bmm(g, call.real(call.key), out=dquery)
        torch.bmm(g.transpose(1, 2), call.query, out=dkey)
    return found


class _Call:
    """The tensors of a call as the kernels read them, and where it runs."""

    def __init__(self, score, query, key, value, v, lengths, mask, bias):
        self.function = function_of(score)
        if score not in ACTIVATIONS and score != "dot":
            raise NotImplementedError(f"{self.function}: score {score!r} has no CUDA kernels, expected tensors on cpu")
        named = {"query": query, "key": key, "value": value, "v": v, "lengths": lengths}
        self.query, self.key, self.value, self.v, self.lengths = (
            dense(self.function, name, t) for name, t in named.items()
        )
        if value is not None:  # what is hidden from every query may hold NaN, which a weight of zero would not hide
            hidden = hidden_keys(mask, bias)
            self.key, self.value = cleared(self.key, hidden), cleared(self.value, hidden)
        self.wide = torch.float64 if query.dtype is torch.float64 else torch.float32
        (B, Tq, D), Tk = query.shape, key.shape[1]
        self._before = (DTYPES[query.dtype], *_cuda_kernels.place_of(query), (B, Tq, Tk, D))

    def run(self, kernel: str, *args) -> None:
        getattr(_cuda_kernels.module(), kernel)(*self._before, *args)

    def inputs(self) -> list[int]:
        return [address_of(t) for t in (self.query, self.key, self.v, self.lengths)]

    def wide_like(self, t: Tensor) -> Tensor:
        """t itself, where it is wide, or an empty tensor of its shape that is."""
        return t if t.dtype is self.wide else torch.empty_like(t, dtype=self.wide)

    def wide_product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """a b [B, Tq, Tk], its sums not rounded to 16 bits; in `out` where that is wide, else in a new tensor."""
        if a.dtype is self.wide:
            return torch.bmm(a, b, out=out)
        if a.is_cuda and hasattr(torch.ops.aten.bmm, "dtype"):  # torch 2.8 and later
            return torch.bmm(a, b, out_dtype=self.wide)
        return torch.bmm(a.to(self.wide), b.to(self.wide))

    def real(self, t: Tensor, dim: int = 1) -> Tensor:
        """t with zeros past the lengths: they may hold anything, also NaN, which a weight of zero would not hide."""
        if self.lengths is None:
            return t
        past = torch.arange(t.shape[dim], device=t.device) >= self.lengths[:, None]
        return t.masked_fill(past.unsqueeze(3 - dim), 0)
