"""The attention decoder on CUDA seen from torch, with the interface of _decoder_kernels.py.

The loop over time is one call of `_cuda`, a few launches a step; the gradients of weights, keys and memory are long
products after it, by torch (cuBLAS): float32 products follow torch.backends.cuda.matmul.allow_tf32, those of the loop
are always float32. Work goes to the caller's current stream. Forward and backward do not synchronise; generation looks
every few steps whether all rows have ended.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cuda_kernels
from ._cuda_products import without_autocast
from ._decoder_kernels import (
    Inputs,
    Record,
    Sizes,
    call_of,
    checked_gradients,
    clear_padding,
    new_gradients,
    new_outputs,
    record_of,
)
from ._memory import address_of

_LOOK = 32  # steps between two looks whether all rows have ended


def forward(cell, bahdanau, *rest):
    *tensors, training = rest
    module = _cuda_kernels.module()
    call, given, sizes = call_of((cell, bahdanau, *tensors), module)
    outputs, weights, h, c, reserve = new_outputs(cell, bahdanau, *tensors, training)
    clear_padding(reserve, sizes)
    B, T, Tk, H, *_ = sizes
    at = record_of(cell, sizes, given.v is not None, bahdanau)
    slots = T if training else 2
    records = reserve if training else outputs.new_empty(B, slots, at.size)
    found = (outputs, weights, records, outputs.new_empty(B, Tk))
    if B:
        module.decoder_forward(call, *_cuda_kernels.place_of(outputs), slots, [t.data_ptr() for t in found])
    last = records[:, (T - 1) % slots] if T else None
    for state, offset, initial in ((h, at.h, given.h0), (c, at.c, given.c0)):
        if state.numel():
            state.copy_(initial if last is None else last[:, offset : offset + H])
    return outputs, weights, h, c, reserve


@without_autocast
def backward(cell, bahdanau, *rest):
    tensors, (weights, reserve, *asked) = rest[:14], rest[14:]
    module = _cuda_kernels.module()
    call, given, sizes = call_of((cell, bahdanau, *tensors), module)
    weights, reserve, doutputs, dweights, dh, dc = checked_gradients(
        cell, bahdanau, sizes, given, weights, reserve, asked
    )
    found = new_gradients(cell, bahdanau, *rest)
    B, T, Tk, H, M, A, _ = sizes
    if not B:
        return tuple(t.zero_() for t in found)
    dgates, _, _, dh0, dc0, dfeed0, *_ = found
    dh0.zero_() if dh is None else dh0.copy_(dh)
    dc0.zero_() if dc is None else dc0.copy_(dc)
    dfeed0.zero_()
    new = dgates.new_empty
    loop = _Loop(
        drecurrent=dgates if cell == "lstm" else new(dgates.shape),
        dout=new((0,) if bahdanau else (B, T, H)), dcontext=new(B, T, M), dscores=new(B, T, Tk), dquery=new(B, T, A),
    )  # fmt: skip
    transposed = [None if w is None else w.t().contiguous() for w in
                  (given.w_hh, given.w_feed, given.w_query, given.w_context, given.w_hidden)]  # fmt: skip
    outs = (dh0, dc0, dgates, *loop, dfeed0, new(B, Tk))
    module.decoder_backward(
        call, *_cuda_kernels.place_of(dgates), [*map(address_of, transposed)],
        [*map(address_of, (weights, reserve, doutputs, dweights))], [*map(address_of, outs)],
    )  # fmt: skip
    _after_loop(module, bahdanau, given, sizes, record_of(cell, sizes, given.v is not None, bahdanau), weights, reserve,
                loop, found)  # fmt: skip
    return found


class _Loop(NamedTuple):
    """What the loop leaves of every step."""

    drecurrent: Tensor  # [B, T, G*H], of the recurrent part of the gates
    dout: Tensor  # [B, T, H], of W_c context + W_o h
    dcontext: Tensor  # [B, T, M]
    dscores: Tensor  # [B, T, Tk]
    dquery: Tensor  # [B, T, A]


def _after_loop(
    module, bahdanau, given: Inputs, sizes: Sizes, at: Record, weights, reserve, loop: _Loop, found
) -> None:
    """The gradients of everything that serves all steps."""
    B, T, Tk, H, M, A, F = sizes
    dgates, dmemory, dkeys, _, _, _, dw_hh, db_hh, dw_feed, dw_query, dv, dw_context, dw_hidden = found

    def kept(offset: int, width: int) -> Tensor:
        return reserve[:, :, offset : offset + width]

    def before(initial: Tensor, of_steps: Tensor) -> Tensor:
        return torch.cat([initial[:, None], of_steps], 1)[:, :T]

    h, context = kept(at.h, H), kept(at.context, M)
    h_before = before(given.h0, h)
    query_from = h_before if bahdanau else h
    _outer(loop.drecurrent, h_before, dw_hh)
    if given.b_hh is not None:
        torch.sum(loop.drecurrent, (0, 1), out=db_hh)
    if bahdanau:
        _outer(dgates, context, dw_feed)
    else:
        if F:
            _outer(dgates, before(given.feed0, kept(at.out, H)), dw_feed)
        _outer(loop.dout, context, dw_context)
        _outer(loop.dout, h, dw_hidden)
    torch.bmm(weights.transpose(1, 2), loop.dcontext, out=dmemory)
    if given.v is None:
        torch.bmm(loop.dscores.transpose(1, 2), query_from, out=dkeys)
        return
    _outer(loop.dquery, query_from, dw_query)
    query = kept(at.query, A).contiguous()
    parts = query.new_empty(B, A)
    module.additive_gradients(
        _cuda_kernels.DTYPES[query.dtype], *_cuda_kernels.place_of(query), (B, T, Tk, A), "tanh",
        [*map(address_of, (query, given.keys, given.v, given.lengths))], loop.dscores.data_ptr(),
        loop.dquery.data_ptr(), dkeys.data_ptr(), loop.dquery.data_ptr(), parts.data_ptr(),
    )  # fmt: skip
    torch.sum(parts, 0, out=dv)


def _outer(d: Tensor, x: Tensor, out: Tensor) -> None:
    """out [N, K] = sum over rows and steps of d [B, T, N] times x [B, T, K]."""
    torch.mm(d.flatten(0, 1).t(), x.flatten(0, 1), out=out)


def generate(arguments, max_length: int, sizes, sampling, given, found) -> None:
    """Fills `found`, as _decoder_kernels.generate()."""
    module = _cuda_kernels.module()
    call, inputs, of_decoder = call_of(arguments, module, max_length)
    cell, bahdanau, *_ = arguments
    (_, V, beams, *_), (B, _, Tk, H, *_) = sizes, of_decoder
    record = record_of(cell, of_decoder, inputs.v is not None, bahdanau).size
    rows, new = B * beams, inputs.memory.new_empty
    totals = new(2, rows)
    totals[0] = -math.inf
    totals[0, ::beams] = 0  # all beams start as one
    done = torch.zeros(B, dtype=torch.bool, device=totals.device)
    scratch = (
        new(rows, 2, record), new(rows, Tk), new(rows, H), new(rows, V), totals, new(rows), new(B, 2 * beams),
        torch.empty(B, 2 * beams, dtype=torch.int64, device=totals.device), done,
    )  # fmt: skip
    for first in range(0, max_length, _LOOK):
        module.decoder_generate(
            call, *_cuda_kernels.place_of(totals), first, min(first + _LOOK, max_length), sizes, *sampling,
            [*map(address_of, given)], [t.data_ptr() for t in found], [t.data_ptr() for t in scratch],
        )  # fmt: skip
        if first + _LOOK < max_length and done.all():
            break
