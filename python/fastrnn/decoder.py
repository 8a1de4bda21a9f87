"""The attention decoder as one differentiable operation: `attention_decoder`, on CPUs and CUDA devices.

What can leave the loop over time does: the input part of the gates is one product for all steps, the keys are projected
by the caller once, and the gradients of all weights are products over all steps. A registered operator serves eager
code, autograd and torch.compile alike. Derivatives of second order differentiate the oracle,
reference.attention_decoder().
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _backends, reference
from ._decoder_checks import FUNCTION, check_operator, check_user, split_state
from ._decoder_kernels import new_gradients, new_outputs
from ._tensor_checks import as_lengths
from ._transforms import transformable

__all__ = ["DecoderWeights", "attention_decoder"]

_ARGS = (
    "str cell, bool bahdanau, Tensor gates, Tensor memory, Tensor keys, Tensor? lengths, Tensor h0, Tensor? c0, "
    "Tensor? feed0, Tensor w_hh, Tensor? b_hh, Tensor? w_feed, Tensor? w_query, Tensor? v, Tensor? w_context, "
    "Tensor? w_hidden"
)
_DIFFERENTIABLE = 13  # every tensor of _ARGS but lengths
_lib = torch.library.Library("fastrnn", "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_lib.define(f"attention_decoder({_ARGS}, bool training) -> ({', '.join(['Tensor'] * 5)})", tags=_tags)
_lib.define(
    f"attention_decoder_backward({_ARGS}, Tensor weights, Tensor reserve, Tensor? doutputs, Tensor? dweights, "
    f"Tensor? dh, Tensor? dc) -> ({', '.join(['Tensor'] * _DIFFERENTIABLE)})",
    tags=_tags,
)


class DecoderWeights(NamedTuple):
    """The weights of a decoder. E is the width of its input, H of its state, M of the memory, A of the keys.

    weight_ih is [G*H, E + F] with torch's gate order, F being what is fed to the cell beside the input: the context (M)
    in Bahdanau's order; h~ of the step before (H), or nothing (0), in Luong's.
    """

    weight_ih: Tensor
    weight_hh: Tensor  # [G*H, H]
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]
    query_weight: Tensor | None = None  # [A, H], additive score
    v: Tensor | None = None  # [A], additive score
    output_weight: Tensor | None = None  # [H, M + H], of context and h: Luong's order


def attention_decoder(
    x: Tensor,
    memory: Tensor,
    weights: DecoderWeights,
    state: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    cell: str = "lstm",
    order: str = "luong",
    keys: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    feed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | tuple[Tensor, Tensor]]:
    """A recurrent cell that attends to a memory at each step, all steps in one call (teacher forcing).

    order "luong" (Luong et al. 2015, arXiv 1508.04025): the cell first, its h is the query, the output is
    h~ = tanh(W_c [context; h]), which enters the next step beside the input if weight_ih is as wide as both (input
    feeding). order "bahdanau" (Bahdanau et al. 2015, arXiv 1409.0473): h of the step before is the query, the context
    enters the cell beside the input, and the output is h. The score is v . tanh(W_q query + key) if the weights have v,
    else query . key.

    Args:
        x: [B, T, E], the embedded inputs; float32 or float64, bfloat16 and float16 through float32.
        memory: [B, Tk, M], what is attended to, usually an encoder's output.
        weights: see DecoderWeights.
        state: the state before the first step, zeros if absent: (h [B, H], c [B, H]) of an LSTM, h of a GRU.
        cell: "lstm" or "gru".
        keys: [B, Tk, A], the projected memory; the memory itself if absent. A = H for the dot score.
        lengths: [B] integers in [0, Tk], how much of each memory is real.
        feed: [B, H], h~ before the first step where it is fed, zeros if absent: for a sequence decoded in parts.

    Returns:
        outputs [B, T, H], weights [B, T, Tk] and the last state, in the form of `state`. Where nothing may be attended
        to the weights and the context are zero.

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> w = DecoderWeights(torch.ones(16, 3 + 4), torch.ones(16, 4), output_weight=torch.ones(4, 4 + 4))
        >>> y, shares, (h, c) = attention_decoder(torch.ones(2, 5, 3), torch.ones(2, 7, 4), w)
    """
    dtype = check_user(x, memory, weights, cell, order, DecoderWeights._fields)
    if dtype in (torch.bfloat16, torch.float16):

        def wide(t):
            return t if t is None or not isinstance(t, Tensor) else t.to(dtype).float()

        states = None if state is None else wide(state) if isinstance(state, Tensor) else tuple(map(wide, state))
        with torch.autocast(x.device.type, enabled=False):
            outputs, shares, last = attention_decoder(
                wide(x), wide(memory), DecoderWeights(*map(wide, weights)), states, cell=cell, order=order,
                keys=wide(keys), lengths=lengths, feed=wide(feed),
            )  # fmt: skip
        last = last.to(dtype) if isinstance(last, Tensor) else tuple(t.to(dtype) for t in last)
        return outputs.to(dtype), shares.to(dtype), last
    arguments = prepare(x, memory, weights, state, cell, order, keys, lengths, feed)
    transforms = torch._C._are_functorch_transforms_active()
    training = torch.is_grad_enabled() and (
        transforms or any(t.requires_grad for t in arguments if isinstance(t, Tensor))
    )
    outputs, shares, h, c, _ = _forward_anywhere(*arguments, training)
    return outputs, shares, (h, c) if cell == "lstm" else h


def prepare(x, memory, weights, state, cell, order, keys, lengths, feed) -> tuple:
    """The arguments of the operator: what is not there filled in, the input part of the gates computed."""
    bahdanau = order == "bahdanau"
    (B, _, E), H = x.shape, weights.weight_hh.shape[1]
    h0, c0 = split_state(state, cell)
    h0 = x.new_zeros(B, H) if h0 is None else h0
    if cell == "lstm" and c0 is None:
        c0 = x.new_zeros(B, H)
    if lengths is not None:
        lengths = as_lengths(FUNCTION, lengths, B, x)
    width = weights.weight_ih.shape[1] - E
    w_input, w_feed = weights.weight_ih.split([E, width], 1) if width else (weights.weight_ih, None)
    if bahdanau or not width:
        if feed is not None:
            raise ValueError(f"{FUNCTION}: feed is given, expected None: nothing of the step before is fed")
    elif feed is None:
        feed = x.new_zeros(B, H)
    w_context = w_hidden = None
    if weights.output_weight is not None:
        w_context, w_hidden = weights.output_weight.split([memory.shape[2], H], 1)
    arguments = (
        cell, bahdanau, linear(x, w_input, weights.bias_ih), memory, memory if keys is None else keys, lengths, h0, c0,
        feed, weights.weight_hh, weights.bias_hh, w_feed, weights.query_weight, weights.v, w_context, w_hidden,
    )  # fmt: skip
    check_operator(*arguments)
    return arguments


# ---------------------------------------------------------------------------------------------------------------------
# Operators


def _forward(cell, bahdanau, *rest):
    return _backends.decoder_of(rest[0]).forward(cell, bahdanau, *rest)


def _backward(cell, bahdanau, *rest):
    return _backends.decoder_of(rest[0]).backward(cell, bahdanau, *rest)


for _device in ("CPU", "CUDA"):
    _lib.impl("attention_decoder", _forward, _device)
    _lib.impl("attention_decoder_backward", _backward, _device)
torch.library.register_fake("fastrnn::attention_decoder", new_outputs, lib=_lib)
torch.library.register_fake("fastrnn::attention_decoder_backward", new_gradients, lib=_lib)


def _save_forward(ctx, inputs, output):
    ctx.cell, ctx.bahdanau, *tensors, _ = inputs
    ctx.save_for_backward(*tensors, output[1], output[4])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, doutputs, dweights, dh, dc, _):
    *tensors, weights, reserve = ctx.saved_tensors
    dc = dc if ctx.cell == "lstm" else None
    found = _backward_anywhere(ctx.cell, ctx.bahdanau, *tensors, weights, reserve, doutputs, dweights, dh, dc)
    found = [*found[:3], None, *found[3:]]
    return None, None, *(None if t is None else d for t, d in zip(tensors, found)), None


def _save_backward(ctx, inputs, output):
    ctx.cell, ctx.bahdanau, *tensors = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_twice(ctx, *above):
    """The derivative of the oracle's derivative."""
    *tensors, _weights, _reserve, doutputs, dweights, dh, dc = ctx.saved_tensors
    lengths = tensors.pop(3)
    present = [i for i, t in enumerate(tensors) if t is not None]
    ups = [doutputs, dweights, dh, dc]
    asked = [i for i, t in enumerate(ups) if t is not None]

    def once(*given):
        inputs, douts = given[: len(present)], dict(zip(asked, given[len(present) :]))

        def forward(*some):
            full = [None] * len(tensors)
            for i, t in zip(present, some):
                full[i] = t
            full.insert(3, lengths)
            outputs, weights, state = reference.attention_decoder(ctx.cell, ctx.bahdanau, *full)
            return outputs, weights, *state

        outs, vjp = torch.func.vjp(forward, *inputs)
        return vjp(tuple(douts.get(i, torch.zeros_like(o)) for i, o in enumerate(outs)))

    with torch.enable_grad():
        _, vjp = torch.func.vjp(once, *(tensors[i] for i in present), *(ups[i] for i in asked))
        found = vjp(tuple(above[i] for i in present))
    grads: list[Tensor | None] = [None] * len(tensors)
    for i, d in zip(present, found):
        grads[i] = d
    grads.insert(3, None)
    dups: list[Tensor | None] = [None] * 4
    for i, d in zip(asked, found[len(present) :]):
        dups[i] = d
    return None, None, *grads, None, None, *dups


torch.library.register_autograd("fastrnn::attention_decoder", _differentiate, setup_context=_save_forward, lib=_lib)
torch.library.register_autograd(
    "fastrnn::attention_decoder_backward", _differentiate_twice, setup_context=_save_backward, lib=_lib
)
_forward_anywhere = transformable(torch.ops.fastrnn.attention_decoder.default, _save_forward, _differentiate)
_backward_anywhere = transformable(
    torch.ops.fastrnn.attention_decoder_backward.default, _save_backward, _differentiate_twice
)  # fmt: skip
