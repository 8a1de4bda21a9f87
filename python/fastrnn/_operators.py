"""The traceable path: operators fastrnn::rnn_forward and fastrnn::rnn_backward, and autograd.Functions above them.

The operators are functional, no output aliases another tensor, and their fake kernels use the kernels' own size
functions. The Functions have setup_context and a vmap rule, which torch.compile, export, vmap and torch.func need.
Second derivatives differentiate the oracle, restated as a function of everything that backward reads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _backends, _checks, _derivatives
from ._cells import CELLS, sizes, width_beyond
from ._derivatives import Layer, spread
from ._layer_checks import check_layer, check_like
from ._transforms import one_by_one

_ARGS = (
    "str cell, Tensor x, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? reset_mask, Tensor[] weights, "
    "int directions, bool batch_first, str schedule, int threads, "
)
_lib = torch.library.Library("fastrnn", "DEF")
_strides = getattr(torch.Tag, "needs_exact_strides", None) or torch.Tag.needs_fixed_stride_order
_tags = (torch.Tag.pt2_compliant_tag, _strides)
_lib.define(f"rnn_forward({_ARGS}bool training) -> (Tensor, Tensor, Tensor, Tensor)", tags=_tags)
_lib.define(
    f"rnn_backward({_ARGS}Tensor y, Tensor reserve, Tensor? dy, Tensor? dh, Tensor? dc, bool[] wanted) -> Tensor[]",
    tags=_tags,
)
# The order everywhere: cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads; the
# Functions take the weights last, because autograd sees only flat tensors.


def _forward(cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, training):
    check_layer("rnn_forward", cell, x, (h0, c0), lengths, reset_mask, weights, directions, batch_first)
    kernels = _backends.kernels_of(x)
    call = kernels.prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    args = (cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads)
    y, h, c, reserve = kernels.forward(call, *args, training, whole_reserve=True)
    return y, h, x.new_empty(0) if c is None else c, x.new_empty(0) if reserve is None else reserve


def _forward_fake(cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, training):
    T, B, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    width = directions * (P or H)
    y = x.new_empty((B, T, width) if batch_first else (T, B, width))
    c = (directions, B, width_beyond(cell, H)) if CELLS[cell][1] > 1 else (0,)
    reserve = _backends.kernels_of(x).reserve_shape(cell, T, B, H, P, directions) if training else (0,)
    return y, x.new_empty((directions, B, P or H)), x.new_empty(c), x.new_empty(reserve)


def _backward(cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, *rest):
    y, reserve, dy, dh, dc, wanted = rest
    f = "rnn_backward"
    check_layer(f, cell, x, (h0, c0), lengths, reset_mask, weights, directions, batch_first)
    T, B, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    wide = (*((B, T) if batch_first else (T, B)), directions * (P or H))
    kernels = _backends.kernels_of(x)
    h, c = (directions, B, P or H), (directions, B, width_beyond(cell, H))
    kept = kernels.reserve_shape(cell, T, B, H, P, directions)
    for name, t, shape in zip(("y", "reserve", "dy", "dh", "dc"), rest, (wide, kept, wide, h, c)):
        if t is not None:
            check_like(f, name, t, x)
            _checks.check_shape(f, name, t.shape, "the shape that goes with forward", shape)
    if len(wanted) != 3 + len(weights):
        _checks.check_count(f, "wanted", len(wanted), f"{3 + len(weights)}: x, h0, c0 and each weight")
    return kernels.backward(
        cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, *rest
    )


def _backward_fake(cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, *rest):
    _, B, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    shapes = [x.shape, (directions, B, P or H), (directions, B, width_beyond(cell, H)), *(w.shape for w in weights)]
    return [x.new_empty(tuple(shape)) for shape, want in zip(shapes, rest[-1]) if want]


for _device in ("CPU", "CUDA"):
    _lib.impl("rnn_forward", _forward, _device)
    _lib.impl("rnn_backward", _backward, _device)
torch.library.register_fake("fastrnn::rnn_forward", _forward_fake, lib=_lib)
torch.library.register_fake("fastrnn::rnn_backward", _backward_fake, lib=_lib)
forward_op = torch.ops.fastrnn.rnn_forward.default
backward_op = torch.ops.fastrnn.rnn_backward.default


# Before 2.7 the compiler cannot be asked whether torch.func is active; there, a compiled torch.func.grad raises.
_DYNAMO_ANSWERS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)


def call(args: tuple, weights: list[Tensor], options: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """The layer where something traces or transforms: the Function where a derivative may follow, else the operator."""
    compiling = torch.compiler.is_compiling()
    transforms = (_DYNAMO_ANSWERS or not compiling) and torch._C._are_functorch_transforms_active()
    if transforms and compiling:
        # Dynamo does not see that an argument of torch.func.grad needs a gradient, only that a result computed from it
        # does; without these views the derivative would be lost in silence.
        args = tuple(t.view_as(t) if isinstance(t, Tensor) else t for t in args)
        weights = [w.view_as(w) for w in weights]
    differentiable = any(t is not None and t.requires_grad for t in (*args[1:6], *weights))
    if transforms and compiling and not (differentiable and _one_transform()):
        raise NotImplementedError(
            f"{_checks.function_of(args[0])}: inside torch.compile at most one torch.func.grad is supported; "
            "keep vmap and second derivatives outside the compiled function"
        )
    tangents = forward_ad._current_level >= 0
    if tangents and compiling:
        raise NotImplementedError(
            f"{_checks.function_of(args[0])}: forward-mode AD is not implemented inside torch.compile, "
            "expected the call outside of torch.autograd.forward_ad.dual_level"
        )
    training = torch.is_grad_enabled() and (transforms or differentiable)
    if training or transforms or tangents:
        return (Traced if compiling else Forward).apply(training, *args, *options, *weights)[:3]
    return forward_op(*args, weights, *options, False)[:3]


def _one_transform() -> bool:
    """Whether torch.func is one level deep; Dynamo loses derivatives of deeper ones in silence."""
    depth = getattr(torch._C._functorch, "get_dynamic_layer_stack_depth", None)
    return depth is not None and depth() == 1


# ---------------------------------------------------------------------------------------------------------------------
# vmap: rows of a batch do not depend on each other, so a mapped dimension is more batch, unless weights are mapped


def _fold(t: Tensor | None, dim: int | None, at: int, n: int) -> Tensor | None:
    """Merges the mapped dimension of t (or a broadcast one) into its batch dimension `at`."""
    if t is None:
        return None
    t = t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if dim is None else t.movedim(dim, at)
    return t.flatten(at, at + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Functions


class Backward(torch.autograd.Function):
    """Gradients as a differentiable operation: (wanted, cell, x, ..., threads, y, reserve, dy, dh, dc, *weights)."""

    @staticmethod
    def forward(wanted, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *rest):
        y, reserve, dy, dh, dc, *weights = rest
        return tuple(
            backward_op(
                cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, y, reserve,
                dy, dh, dc, list(wanted),
            )
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        wanted, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, _, _, _, _, dy, dh, dc, *weights = inputs
        saved = (lengths, reset_mask, x, h0, c0, dy, dh, dc, *weights)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)
        ctx.options = (wanted, cell, directions, batch_first)

    @staticmethod
    def _layer(ctx):
        lengths, reset_mask, *tensors = ctx.saved_tensors
        wanted, cell, *options = ctx.options
        return Layer(cell, lengths, reset_mask, *options), wanted, tensors

    @staticmethod
    def backward(ctx, *ddout):
        layer, wanted, tensors = Backward._layer(ctx)
        dx, dh0, dc0, ddy, ddh, ddc, *dweights = _derivatives.second(layer, wanted, tensors, ddout)
        return None, None, dx, dh0, dc0, None, None, None, None, None, None, None, None, ddy, ddh, ddc, *dweights

    @staticmethod
    def jvp(ctx, *tangents):
        given = (*tangents[2:5], *tangents[13:])  # of x, h0, c0, dy, dh, dc, *weights; y follows from these
        return tuple(_derivatives.tangents_of_gradients(*Backward._layer(ctx), given))

    @staticmethod
    def vmap(info, in_dims, *args):
        wanted, batch_first = args[0], args[8]
        if any(wanted[3:]) or any(d is not None for d in in_dims[16:]):
            return one_by_one(Backward, info.batch_size, in_dims, args)
        b = 0 if batch_first else 1
        places = {2: b, 3: 1, 4: 1, 5: 0, 6: b, 11: b, 12: 2, 13: b, 14: 1, 15: 1}
        n, B = info.batch_size, _batch_size(args[2], in_dims[2], b)
        folded = [_fold(a, in_dims[i], places[i], n) if i in places else a for i, a in enumerate(args)]
        at = [p for p, want in zip((b, 1, 1), wanted) if want]
        return tuple(o.unflatten(p, (n, B)) for o, p in zip(Backward.apply(*folded), at)), tuple(at)


def _batch_size(x: Tensor, dim: int | None, b: int) -> int:
    return x.shape[b] if dim is None else x.movedim(dim, 0).shape[b + 1]


class Traced(torch.autograd.Function):
    """The layer: (training, cell, x, ..., threads, *weights) -> y, h, c, reserve; what torch.compile takes."""

    @staticmethod
    def forward(training, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *weights):
        return forward_op(
            cell, x, h0, c0, lengths, reset_mask, list(weights), directions, batch_first, schedule, threads, training
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *weights = inputs
        y, _, c, reserve = output
        ctx.mark_non_differentiable(*((reserve,) if CELLS[cell][1] > 1 else (c, reserve)))
        ctx.save_for_backward(x, h0, c0, lengths, reset_mask, y, reserve, *weights)
        ctx.options = (cell, directions, batch_first, schedule, threads)

    @staticmethod
    def backward(ctx, dy, dh, dc, _):
        x, h0, c0, lengths, reset_mask, y, reserve, *weights = ctx.saved_tensors
        cell, *options = ctx.options
        need = ctx.needs_input_grad
        wanted = (need[2], need[3], need[4], *need[11:])
        if CELLS[cell][1] == 1:
            dc = None
        args = (cell, x, h0, c0, lengths, reset_mask)
        compiling = torch.compiler.is_compiling()
        if not compiling and (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
            found = Backward.apply(wanted, *args, *options, y, reserve, dy, dh, dc, *weights)
        else:  # torch.compile does not trace second derivatives
            found = backward_op(*args, weights, *options, y, reserve, dy, dh, dc, list(wanted))
        dx, dh0, dc0, *dweights = spread(found, wanted)
        return None, None, dx, dh0, dc0, None, None, None, None, None, None, *dweights


class Forward(Traced):
    """The layer outside of torch.compile, which takes no Function that has a rule for forward mode."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        Traced.setup_context(ctx, inputs, output)
        _, cell, x, h0, c0, lengths, reset_mask, _, _, _, _, *weights = inputs
        ctx.save_for_forward(x, h0, c0, lengths, reset_mask, *weights)
        ctx.set_materialize_grads(False)
        ctx.shapes = [o.shape for o in output[: 2 + (CELLS[cell][1] > 1)]]

    @staticmethod
    def jvp(ctx, *tangents):
        x, h0, c0, lengths, reset_mask, *weights = ctx.saved_tensors
        cell, directions, batch_first, _, _ = ctx.options
        layer = Layer(cell, lengths, reset_mask, directions, batch_first)
        given = (*tangents[2:5], *tangents[11:])
        found = _derivatives.tangents_of_outputs(layer, (x, h0, c0, *weights), given, ctx.shapes)
        return *found, *(None,) * (4 - len(found))

    @staticmethod
    def vmap(info, in_dims, *args):
        if any(d is not None for d in in_dims[11:]):
            return one_by_one(Forward, info.batch_size, in_dims, args)
        b = 0 if args[8] else 1
        places = {2: b, 3: 1, 4: 1, 5: 0, 6: b}
        n, B = info.batch_size, _batch_size(args[2], in_dims[2], b)
        outs = Forward.apply(*(_fold(a, in_dims[i], places[i], n) if i in places else a for i, a in enumerate(args)))
        at = [p if o.ndim > 1 else None for o, p in zip(outs, (b, 1, 1, 2))]  # c and the reserve may be empty
        return tuple(o if p is None else o.unflatten(p, (n, B)) for o, p in zip(outs, at)), tuple(at)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients for callers of torch.ops.fastrnn.*; the Functions above run the operators with autograd off


def _save_forward(ctx, inputs, output):
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, training = inputs
    flat = (training, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *weights)
    Traced.setup_context(ctx, flat, output)


def _forward_backward(ctx, dy, dh, dc, _):
    if not ctx.saved_tensors[6].numel() and ctx.saved_tensors[5].numel():
        raise RuntimeError("rnn_forward: training is False, expected True where a gradient is needed")
    x, h0, c0, lengths, reset_mask, y, reserve, *weights = ctx.saved_tensors
    cell, *options = ctx.options
    need = ctx.needs_input_grad
    wanted = (need[1], need[2], need[3], *need[6])
    dc = dc if CELLS[cell][1] > 1 else None
    found = Backward.apply(wanted, cell, x, h0, c0, lengths, reset_mask, *options, y, reserve, dy, dh, dc, *weights)
    dx, dh0, dc0, *dweights = spread(found, wanted)
    return None, dx, dh0, dc0, None, None, dweights, None, None, None, None, None


def _save_backward(ctx, inputs, output):
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, _, _, _, _, dy, dh, dc, wanted = inputs
    ctx.save_for_backward(lengths, reset_mask, x, h0, c0, dy, dh, dc, *weights)
    ctx.options = (wanted, cell, directions, batch_first)


def _backward_backward(ctx, ddout):
    dx, dh0, dc0, ddy, ddh, ddc, *dweights = _derivatives.second(*Backward._layer(ctx), ddout)
    none = (None,) * 4
    return None, dx, dh0, dc0, None, None, dweights, *none, None, None, ddy, ddh, ddc, None


torch.library.register_autograd("fastrnn::rnn_forward", _forward_backward, setup_context=_save_forward, lib=_lib)
torch.library.register_autograd("fastrnn::rnn_backward", _backward_backward, setup_context=_save_backward, lib=_lib)
