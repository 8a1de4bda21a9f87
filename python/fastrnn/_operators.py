"""The traceable path: operators fastrnn::rnn_forward and fastrnn::rnn_backward, and autograd.Functions above them.

The operators are functional, no output aliases another tensor, and their fake kernels use the kernels' own size
functions. The Functions have setup_context and rules for vmap and forward mode, which torch.compile, export, vmap and
torch.func need. Derivatives beyond the first are those of the oracle, see _derivatives.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _backends, _checks, _derivatives, _extras
from ._cells import CELLS, sizes, width_beyond
from ._derivatives import Layer, spread
from ._extras import Extras
from ._layer_checks import check_layer, check_like
from ._transforms import one_by_one

_ARGS = (
    "str cell, Tensor x, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? reset_mask, Tensor[] weights, "
    "int directions, bool batch_first, str schedule, int threads, "
)
_lib = torch.library.Library("fastrnn", "DEF")
_strides = getattr(torch.Tag, "needs_exact_strides", None) or torch.Tag.needs_fixed_stride_order
_tags = (torch.Tag.pt2_compliant_tag, _strides)
_lib.define(f"rnn_forward({_ARGS}bool training, {_extras.SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)", tags=_tags)
_lib.define(
    f"rnn_backward({_ARGS}Tensor y, Tensor reserve, Tensor? dy, Tensor? dh, Tensor? dc, bool[] wanted, "
    f"Tensor? dcs=None, {_extras.SCHEMA}) -> Tensor[]",
    tags=_tags,
)
# The order everywhere: cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads; the
# extras, see _extras.py, come last. The Functions take the weights last, because autograd sees only flat tensors.


def _forward(
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, training, *more
):
    f, extras = "rnn_forward", Extras(*more)
    check_layer(f, cell, x, (h0, c0), lengths, reset_mask, weights, directions, batch_first)
    extras.check(f, cell, x, weights, directions, batch_first)
    kernels = _backends.kernels_of(x)
    call = kernels.prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    args = (cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads)
    y, h, c, reserve = kernels.forward(
        call, *args, training, whole_reserve=True, noise=extras.noise(), backprop=extras.backprop(),
        reset_to_initial=extras.reset_to_initial,
    )  # fmt: skip
    return y, h, x.new_empty(0) if c is None else c, x.new_empty(0) if reserve is None else reserve


def _kept_shape(cell, x, weights, directions, batch_first, extras: Extras) -> tuple[int, ...]:
    shape = (*sizes(cell, x, weights, directions, batch_first)[:5], directions)
    noise = extras._replace(seed=None).noise()  # which may have no value
    return _backends.kernels_of(x).kept_shape(cell, x.element_size(), shape, noise, extras.backprop())


def _forward_fake(
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, training, *more
):
    T, B, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    width = directions * (P or H)
    y = x.new_empty((B, T, width) if batch_first else (T, B, width))
    c = (directions, B, width_beyond(cell, H)) if CELLS[cell][1] > 1 else (0,)
    reserve = _kept_shape(cell, x, weights, directions, batch_first, Extras(*more)) if training else (0,)
    return y, x.new_empty((directions, B, P or H)), x.new_empty(c), x.new_empty(reserve)


def _backward(
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, y, reserve, dy, dh, dc,
    wanted, dcs=None, *more,
):  # fmt: skip
    f, extras = "rnn_backward", Extras(*more)
    check_layer(f, cell, x, (h0, c0), lengths, reset_mask, weights, directions, batch_first)
    extras.check(f, cell, x, weights, directions, batch_first)
    T, B, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    before, beyond = (B, T) if batch_first else (T, B), width_beyond(cell, H)
    wide, h, c = (*before, directions * (P or H)), (directions, B, P or H), (directions, B, beyond)
    kept = _kept_shape(cell, x, weights, directions, batch_first, extras)
    shapes = {"y": wide, "reserve": kept, "dy": wide, "dh": h, "dc": c, "dcs": (*before, directions * beyond)}
    for (name, shape), t in zip(shapes.items(), (y, reserve, dy, dh, dc, dcs)):
        if t is not None:
            check_like(f, name, t, x)
            _checks.check_shape(f, name, t.shape, "the shape that goes with forward", shape)
    if len(wanted) != 3 + len(weights):
        _checks.check_count(f, "wanted", len(wanted), f"{3 + len(weights)}: x, h0, c0 and each weight")
    return _backends.kernels_of(x).backward(
        cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, y, reserve,
        dy, dh, dc, wanted, None, extras.noise(), dcs, extras.backprop(), extras.reset_to_initial,
    )  # fmt: skip


def _backward_fake(
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, y, reserve, dy, dh, dc,
    wanted, *more,
):  # fmt: skip
    _, B, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    shapes = [x.shape, (directions, B, P or H), (directions, B, width_beyond(cell, H)), *(w.shape for w in weights)]
    return [x.new_empty(tuple(shape)) for shape, want in zip(shapes, wanted) if want]


for _device in ("CPU", "CUDA"):
    _lib.impl("rnn_forward", _forward, _device)
    _lib.impl("rnn_backward", _backward, _device)
torch.library.register_fake("fastrnn::rnn_forward", _forward_fake, lib=_lib)
torch.library.register_fake("fastrnn::rnn_backward", _backward_fake, lib=_lib)
forward_op = torch.ops.fastrnn.rnn_forward.default
backward_op = torch.ops.fastrnn.rnn_backward.default


# Before 2.7 the compiler cannot be asked whether torch.func is active; there, a compiled torch.func.grad raises.
_DYNAMO_ANSWERS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)


def call(args: tuple, weights: list[Tensor], options: tuple, extras: Extras, keep: str) -> tuple[Tensor, ...]:
    """The layer where something traces or transforms: the Function where a derivative may follow, else the operator.

    keep: "", "return_states" or "return_gates".

    Returns:
        y, h, c and, with keep, the states beyond h of every step and the gates; empty tensors for what there is not.
    """
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
        function = Traced if compiling else Forward
        y, h, c, _, *kept = function.apply(training, keep, *args, *options, *extras, *weights)
        return y, h, c, *kept
    y, h, c, reserve = forward_op(*args, weights, *options, keep != "", *extras)
    return (y, h, c, *_kept_states(args[0], reserve, weights, args[4], options[1], keep)) if keep else (y, h, c)


def _kept_states(cell, reserve, weights, lengths, batch_first, keep: str) -> tuple[Tensor, Tensor]:
    kernels = _backends.kernels_of(reserve)
    found = kernels.kept_states(cell, reserve, weights, lengths, batch_first, keep == "return_gates")
    cs, gates = (reserve.new_empty(0) if t is None else t for t in found)
    return cs, gates


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
    """Gradients as a differentiable operation: (wanted, cell, x, ..., threads, y, reserve, dy, dh, dc, dcs, *extras,
    *weights)."""

    @staticmethod
    def forward(wanted, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *rest):
        y, reserve, dy, dh, dc, dcs, *rest = rest
        extras, weights = rest[: _extras.COUNT], rest[_extras.COUNT :]
        return tuple(
            backward_op(
                cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, y, reserve,
                dy, dh, dc, list(wanted), dcs, *extras,
            )
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        wanted, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, _, _, _, _, *rest = inputs
        above, extras, weights = rest[:4], rest[4 : 4 + _extras.COUNT], rest[4 + _extras.COUNT :]
        saved = (lengths, reset_mask, *extras[: _extras.TENSORS], x, h0, c0, *above, *weights)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)
        ctx.options = (wanted, cell, directions, batch_first, extras[_extras.TENSORS :])

    @staticmethod
    def _layer(ctx):
        lengths, reset_mask, seed, h_mask, detach_mask, *tensors = ctx.saved_tensors
        wanted, cell, directions, batch_first, plain = ctx.options
        extras = Extras(seed, h_mask, detach_mask, *plain)
        return (
            Layer(cell, lengths, reset_mask, directions, batch_first, extras, tensors[6] is not None),
            wanted,
            tensors,
        )

    @staticmethod
    def backward(ctx, *ddout):
        layer, wanted, tensors = Backward._layer(ctx)
        dx, dh0, dc0, *rest = _derivatives.second(layer, wanted, tensors, ddout)
        above, dweights = rest[:4], rest[4:]
        return None, None, dx, dh0, dc0, *(None,) * 8, *above, *(None,) * _extras.COUNT, *dweights

    @staticmethod
    def jvp(ctx, *tangents):
        given = (*tangents[2:5], *tangents[13:17], *tangents[17 + _extras.COUNT :])  # of y: it follows from these
        return tuple(_derivatives.tangents_of_gradients(*Backward._layer(ctx), given))

    @staticmethod
    def vmap(info, in_dims, *args):
        wanted, batch_first, weights = args[0], args[8], in_dims[17 + _extras.COUNT :]
        if (
            any(wanted[3:])
            or any(d is not None for d in weights)
            or _special("dcs" if args[16] is not None else "", args[17:])
        ):
            return one_by_one(Backward, info.batch_size, in_dims, args)
        b = 0 if batch_first else 1
        places = {2: b, 3: 1, 4: 1, 5: 0, 6: b, 11: b, 12: 2, 13: b, 14: 1, 15: 1}
        n, B = info.batch_size, _batch_size(args[2], in_dims[2], b)
        folded = [_fold(a, in_dims[i], places[i], n) if i in places else a for i, a in enumerate(args)]
        at = [p for p, want in zip((b, 1, 1), wanted) if want]
        return tuple(o.unflatten(p, (n, B)) for o, p in zip(Backward.apply(*folded), at)), tuple(at)


def _special(keep: str, extras: tuple) -> bool:
    """Whether rows depend on their place in the batch, or something is asked for that vmap has no short way for."""
    tensors, plain = extras[: _extras.TENSORS], tuple(extras[_extras.TENSORS : _extras.COUNT])
    return keep != "" or any(t is not None for t in tensors) or plain != _extras.NONE[_extras.TENSORS :]


def _batch_size(x: Tensor, dim: int | None, b: int) -> int:
    return x.shape[b] if dim is None else x.movedim(dim, 0).shape[b + 1]


class Traced(torch.autograd.Function):
    """The layer: (training, keep, cell, x, ..., threads, *extras, *weights) -> y, h, c, reserve and, with keep, states
    and gates of every step; what torch.compile takes."""

    @staticmethod
    def forward(
        training, keep, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *rest
    ):
        extras, weights = rest[: _extras.COUNT], list(rest[_extras.COUNT :])
        y, h, c, reserve = forward_op(
            cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads,
            training or keep != "", *extras,
        )  # fmt: skip
        if keep == "":
            return y, h, c, reserve
        return y, h, c, reserve, *_kept_states(cell, reserve, weights, lengths, batch_first, keep)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads, *rest = inputs
        extras, weights = rest[: _extras.COUNT], rest[_extras.COUNT :]
        y, _, c, reserve, *kept = output
        if CELLS[cell][1] > 1:
            ctx.mark_non_differentiable(reserve, *kept[1:])
        else:
            ctx.mark_non_differentiable(c, reserve, *kept)
        ctx.save_for_backward(x, h0, c0, lengths, reset_mask, y, reserve, *extras[: _extras.TENSORS], *weights)
        ctx.options = (cell, directions, batch_first, schedule, threads)
        ctx.extras = tuple(extras[_extras.TENSORS :])

    @staticmethod
    def backward(ctx, dy, dh, dc, _, dcs=None, _gates=None):
        x, h0, c0, lengths, reset_mask, y, reserve, seed, h_mask, detach_mask, *weights = ctx.saved_tensors
        cell, *options = ctx.options
        need = ctx.needs_input_grad
        wanted = (need[3], need[4], need[5], *need[12 + _extras.COUNT :])
        if CELLS[cell][1] == 1:
            dc = dcs = None
        args, extras = (cell, x, h0, c0, lengths, reset_mask), (seed, h_mask, detach_mask, *ctx.extras)
        compiling = torch.compiler.is_compiling()
        if not compiling and (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
            found = Backward.apply(wanted, *args, *options, y, reserve, dy, dh, dc, dcs, *extras, *weights)
        else:  # torch.compile does not trace second derivatives
            found = backward_op(*args, weights, *options, y, reserve, dy, dh, dc, list(wanted), dcs, *extras)
        dx, dh0, dc0, *dweights = spread(found, wanted)
        return None, None, None, dx, dh0, dc0, *(None,) * (6 + _extras.COUNT), *dweights


class Forward(Traced):
    """The layer outside of torch.compile, which takes no Function that has a rule for forward mode."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        Traced.setup_context(ctx, inputs, output)
        _, keep, cell, x, h0, c0, lengths, reset_mask, _, _, _, _, *rest = inputs
        extras, weights = rest[: _extras.COUNT], rest[_extras.COUNT :]
        ctx.save_for_forward(lengths, reset_mask, *extras[: _extras.TENSORS], x, h0, c0, *weights)
        ctx.set_materialize_grads(False)
        many = CELLS[cell][1] > 1
        ctx.keep, ctx.outputs = keep, (0, 1, *((2, 4) if many and keep else (2,) if many else ()))
        ctx.shapes = [output[k].shape for k in ctx.outputs]

    @staticmethod
    def jvp(ctx, *tangents):
        lengths, reset_mask, seed, h_mask, detach_mask, *inputs = ctx.saved_tensors
        cell, directions, batch_first, _, _ = ctx.options
        extras = Extras(seed, h_mask, detach_mask, *ctx.extras)
        if extras.grad_clip:
            raise NotImplementedError(
                f"{_checks.function_of(cell)}: grad_clip is {extras.grad_clip} in forward-mode AD, expected 0: it bounds "
                "gradients, which forward mode does not compute"
            )
        layer = Layer(cell, lengths, reset_mask, directions, batch_first, extras, 4 in ctx.outputs)
        given = (*tangents[3:6], *tangents[12 + _extras.COUNT :])
        found: list[Tensor | None] = [None] * (6 if ctx.keep else 4)
        for k, t in zip(ctx.outputs, _derivatives.tangents_of_outputs(layer, inputs, given, ctx.shapes)):
            found[k] = t
        return tuple(found)

    @staticmethod
    def vmap(info, in_dims, *args):
        if any(d is not None for d in in_dims[12 + _extras.COUNT :]) or _special(args[1], args[12:]):
            return one_by_one(Forward, info.batch_size, in_dims, args)
        b = 0 if args[9] else 1
        places = {3: b, 4: 1, 5: 1, 6: 0, 7: b}
        n, B = info.batch_size, _batch_size(args[3], in_dims[3], b)
        outs = Forward.apply(*(_fold(a, in_dims[i], places[i], n) if i in places else a for i, a in enumerate(args)))
        at = [p if o.ndim > 1 else None for o, p in zip(outs, (b, 1, 1, 2))]  # c and the reserve may be empty
        return tuple(o if p is None else o.unflatten(p, (n, B)) for o, p in zip(outs, at)), tuple(at)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients for callers of torch.ops.fastrnn.*; the Functions above run the operators with autograd off


def _save_forward(ctx, inputs, output):
    cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first, schedule, threads, training, *extras = (
        inputs
    )
    ctx.training = training
    args = (cell, x, h0, c0, lengths, reset_mask, directions, batch_first, schedule, threads)
    Traced.setup_context(ctx, (True, "", *args, *extras, *weights), output)


def _forward_backward(ctx, dy, dh, dc, _):
    if not ctx.training and ctx.saved_tensors[5].numel():
        raise RuntimeError("rnn_forward: training is False, expected True where a gradient is needed")
    x, h0, c0, lengths, reset_mask, y, reserve, seed, h_mask, detach_mask, *weights = ctx.saved_tensors
    cell, *options = ctx.options
    need = ctx.needs_input_grad
    wanted = (need[1], need[2], need[3], *need[6])
    dc = dc if CELLS[cell][1] > 1 else None
    args, extras = (cell, x, h0, c0, lengths, reset_mask), (seed, h_mask, detach_mask, *ctx.extras)
    found = Backward.apply(wanted, *args, *options, y, reserve, dy, dh, dc, None, *extras, *weights)
    dx, dh0, dc0, *dweights = spread(found, wanted)
    return _for_given(ctx, None, dx, dh0, dc0, None, None, dweights, *(None,) * (5 + _extras.COUNT))


def _for_given(ctx, *grads) -> tuple:
    """The dispatcher leaves arguments away that are as by default, and wants gradients of the others alone."""
    return grads[: len(ctx.needs_input_grad)]


def _save_backward(ctx, inputs, output):
    cell, x, h0, c0, lengths, reset_mask, weights, *options, y, reserve, dy, dh, dc, wanted, dcs = inputs[:18]
    args = (cell, x, h0, c0, lengths, reset_mask)
    Backward.setup_context(ctx, (wanted, *args, *options, y, reserve, dy, dh, dc, dcs, *inputs[18:], *weights), output)


def _backward_backward(ctx, ddout):
    dx, dh0, dc0, *rest = _derivatives.second(*Backward._layer(ctx), ddout)
    above, dweights = rest[:4], rest[4:]
    rest = (*above[:3], None, above[3], *(None,) * _extras.COUNT)
    return _for_given(ctx, None, dx, dh0, dc0, None, None, dweights, *(None,) * 6, *rest)


torch.library.register_autograd("fastrnn::rnn_forward", _forward_backward, setup_context=_save_forward, lib=_lib)
torch.library.register_autograd("fastrnn::rnn_backward", _backward_backward, setup_context=_save_backward, lib=_lib)
