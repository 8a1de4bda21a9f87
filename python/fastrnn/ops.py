"""One operation, `rnn_layer`: a recurrent layer with one or two directions, over three call paths to one kernel.

1. eager, no gradient: checks, allocation, one raw call, a few microseconds in all;
2. eager with gradient: a classic autograd.Function around the same call (setup_context would cost 50 us more);
3. torch.compile, export, vmap, torch.func, tensor subclasses, modes: registered operators, see _operators.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _backends, _kernels, _operators, _oracle
from ._backprop import Backprop
from ._cells import CELLS, join_states, split_states
from ._checks import function_of
from ._extras import flat
from ._heads import join_units, split_rows, split_units
from ._kernels import prepare
from ._layer_checks import check_backprop, check_candidate, check_layer, check_rows, check_state_count, check_zoned
from ._noise import Noise
from ._paths import is_exotic, is_watched

__all__ = ["CELLS", "rnn_layer"]

_grad_enabled, _tracing_state = torch.is_grad_enabled, torch._C._get_tracing_state


class _Eager(torch.autograd.Function):
    """Path 2. `plain` is what prepare() found, kept for backward: addresses, unlike prepare_any()'s copies."""

    @staticmethod
    def forward(ctx, call, plain, cell, rows, options, noise, backprop, keep, to_initial, x, h0, c0, *weights):
        y, h, c, reserve = _backends.kernels_of(x).forward(
            call, cell, x, h0, c0, *rows, weights, *options, True, noise=noise, backprop=backprop,
            reset_to_initial=to_initial,
        )  # fmt: skip
        ctx.save_for_backward(x, h0, c0, *rows, y, reserve, *weights)
        ctx.plain, ctx.cell, ctx.options, ctx.noise, ctx.backprop = plain, cell, options, noise, backprop
        ctx.to_initial = to_initial
        ctx.set_materialize_grads(False)
        if keep is None:
            return (y, h) if c is None else (y, h, c)
        cs, keep.gates = keep.states(cell, reserve, weights, rows[0], options[1])
        return (y, h) if c is None else (y, h, c, cs)

    @staticmethod
    def backward(ctx, dy, dh, dc=None, dcs=None):
        x, h0, c0, lengths, reset_mask, y, reserve, *weights = ctx.saved_tensors
        options, noise, backprop = ctx.options, ctx.noise, ctx.backprop
        wanted = ctx.needs_input_grad[9:]
        args = (ctx.cell, x, h0, c0, lengths, reset_mask)
        if _grad_enabled() or is_watched() or is_exotic((dy, dh, dc, dcs)):  # the first: create_graph=True
            extras = flat(noise, backprop, ctx.to_initial)
            found = _operators.Backward.apply(wanted, *args, *options, y, reserve, dy, dh, dc, dcs, *extras, *weights)
        else:
            backward = _backends.kernels_of(x).backward
            rest = (wanted, ctx.plain, noise, dcs, backprop, ctx.to_initial)
            found = backward(*args, weights, *options, y, reserve, dy, dh, dc, *rest)
        return None, None, None, None, None, None, None, None, None, *_operators.spread(found, wanted)


class Keep:
    """What a caller of rnn_layer() wants of every step, and finds here afterwards.

    Attributes:
        c: [T, B, D*H] ([B, T, D*H] with batch_first), differentiable; None for cells without c. For one with c, n and
            m [T, B, D*3*H], the three of a direction side by side.
        gates: [T, B, D, G, H] after their activation, without gradient; None unless asked for.
    """

    def __init__(self, gates: bool = False):
        self.wants = "return_gates" if gates else "return_states"
        self.c: Tensor | None = None
        self.gates: Tensor | None = None

    def states(
        self, cell: str, reserve: Tensor, weights: Sequence[Tensor], lengths: Tensor | None, batch_first: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        kernels = _backends.kernels_of(reserve)
        return kernels.kept_states(cell, reserve, weights, lengths, batch_first, self.wants == "return_gates")


def _refuse(function: str) -> None:
    raise NotImplementedError(
        f"{function}: zoneout, recurrent_dropout, candidate_dropout, reset_to='initial', return_states, checkpoint_every, "
        "grad_clip and detach_mask are not implemented inside torch.jit.trace, expected none of them"
    )


def _anywhere(
    cell: str,
    args: tuple,
    weights: Sequence[Tensor],
    options: tuple,
    noise: Noise | None,
    backprop: Backprop | None,
    to_initial: bool,
    keep: Keep | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Path 3."""
    extras = flat(noise, backprop, to_initial)
    y, h, c, *kept = _operators.call(args, list(weights), options, extras, "" if keep is None else keep.wants)
    if keep is not None:
        cs, gates = kept
        keep.c = cs if CELLS[cell][1] > 1 else None
        keep.gates = gates if keep.wants == "return_gates" else None
    return y, split_states(cell, h, c)


def rnn_layer(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor | None] | None = None,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    *,
    directions: int = 1,
    batch_first: bool = False,
    schedule: str = "",
    threads: int = 0,
    function: str = "",
    suffix: str = "",
    expected: tuple[int, int, int] | None = None,
    noise: Noise | None = None,
    backprop: Backprop | None = None,
    keep: Keep | None = None,
    reset_to: str = "zero",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs one recurrent layer; differentiable, traceable.

    Args:
        cell: one of CELLS, the names of csrc/cells/all.h.
        x: [T, B, I], or [B, T, I] with batch_first; float32 or float64, on CUDA also bfloat16 or float16; any strides.
        weights: per direction w_ih [G*H, I], w_hh [G*H, H or P], b_ih, b_hh [G*H] (both or none), w_hr [P, H] (LSTM
            with projection only); the dtype of x.
        states: h0 [D, B, H or P] and those that the cell has besides, c0 (LSTM) or c0, n0, m0 (sLSTM) [D, B, H]; None,
            also for one of them, means zeros.
        lengths: [B] integers in [0, T]; y is zero past them and the last state is the state there.
        reset_mask: bool [T, B] ([B, T] with batch_first), true where no state may cross from t-1 to t.
        directions: 1 or 2.
        schedule: "" lets the plan choose; "batch_split" or "hidden_split", on CUDA "cta", "cluster", "grid" or
            "stepwise", force one.
        threads: 0 for fastrnn.get_num_threads().
        function, suffix, expected: words and known sizes (I, H, P) for the text of errors.
        noise: zoneout and recurrent dropout of this call.
        backprop: how gradients are computed.
        keep: gets the states of every step.
        reset_to: "zero", or "initial": the state that enters where reset_mask is true.

    Returns:
        y [T, B, D*(H or P)] ([B, T, ...] with batch_first) and the last states, shaped like `states`.

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.
        NotImplementedError: an option inside torch.jit.trace, or one that the device lacks.

    Example:
        >>> y, (h,) = rnn_layer("gru", torch.ones(5, 2, 3), [torch.ones(12, 3), torch.ones(12, 4)])
    """
    h0 = c0 = None
    if states is not None:
        if cell in CELLS and CELLS[cell][1] > 2:
            f = function or function_of(cell)
            states = check_state_count(f, cell, states)
            check_layer(f, cell, x, states, None, None, weights, directions, batch_first, suffix, expected)
            states = states[0], join_states(states[1:])
        h0 = states[0]
        if len(states) > 1:
            c0 = states[1]
    args = (cell, x, h0, c0, lengths, reset_mask)
    options = (directions, batch_first, schedule, threads)
    watched = is_watched()
    if backprop is not None:
        check_backprop(function or function_of(cell), cell, x, backprop, keep.wants if keep else "", batch_first)
        backprop = backprop if _grad_enabled() else None
    to_initial = reset_to == "initial" and reset_mask is not None and not (h0 is None and c0 is None)
    if noise is not None:
        check_candidate(function or function_of(cell), cell, noise.candidate)
        check_zoned(function or function_of(cell), cell, noise.zoneout)
    special = (noise, backprop, to_initial, keep)
    if watched and _tracing_state() is not None:  # sizes are traced values here: the operator checks when it runs
        if special != (None, None, False, None):
            _refuse(function or function_of(cell))
        y, h, c, _ = _operators.forward_op(*args, list(weights), *options, True)
        return y, split_states(cell, h, c)
    call = plain = None if watched else prepare(cell, x, h0, c0, reset_mask, weights, directions, batch_first, expected)
    function = function or function_of(cell)
    if call is None:
        check_layer(
            function, cell, x, (h0, c0), lengths, reset_mask, weights, directions, batch_first, suffix, expected
        )
        if watched or is_exotic((x, h0, c0, lengths, reset_mask, *weights)):
            return _anywhere(cell, args, weights, options, *special)
        call = _backends.kernels_of(x).prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    elif lengths is not None:
        check_rows(function, x, lengths, reset_mask, call[1], call[2], batch_first)
        if is_exotic((lengths,)):
            return _anywhere(cell, args, weights, options, *special)
    if _grad_enabled():
        for t in (x, h0, c0, *weights):
            if t is not None and t.requires_grad:
                rows = (lengths, reset_mask)
                y, *last = _Eager.apply(
                    call, plain, cell, rows, options, noise, backprop, keep, to_initial, x, h0, c0, *weights
                )
                if keep is not None and CELLS[cell][1] > 1:
                    keep.c = last.pop()
                return y, split_states(cell, *last, *(None,) * (2 - len(last)))
    training = keep is not None
    y, h, c, reserve = _backends.kernels_of(x).forward(
        call, *args, weights, *options, training, noise=noise, reset_to_initial=to_initial
    )
    if keep is not None:
        keep.c, keep.gates = keep.states(cell, reserve, weights, lengths, batch_first)
    return y, split_states(cell, h, c)


def rnn_heads(
    num_heads: int,
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor | None] | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    *,
    directions: int,
    batch_first: bool,
    function: str,
    suffix: str,
    expected: tuple[int, int, int],
    noise: Noise | None = None,
    keep: Keep | None = None,
    **options: object,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """rnn_layer() with a block-diagonal recurrent matrix (see _heads.py): the layer once for each head, on its part of
    the weights and states."""
    rows = (lengths, reset_mask)
    check_layer(function, cell, x, states or (), *rows, weights, directions, batch_first, suffix, expected, num_heads)
    I, H, _ = expected
    parts = [split_rows(w, num_heads, H) for w in weights]
    ys, lasts, keeps = [], [], []
    for n in range(num_heads):
        own = [None if s is None else split_units(s, num_heads)[n].contiguous() for s in states or ()] or None
        keeps.append(None if keep is None else Keep(keep.wants == "return_gates"))
        y, last = rnn_layer(
            cell, x, [w[n] for w in parts], own, *rows, directions=directions, batch_first=batch_first, function=function,
            suffix=suffix, expected=(I, H // num_heads, 0), noise=None if noise is None else noise.of_head(n, num_heads),
            keep=keeps[n], **options,
        )  # fmt: skip
        ys.append(y)
        lasts.append(last)
    if keep is not None:
        sides = directions * (CELLS[cell][1] - 1)
        keep.c = None if keeps[0].c is None else join_units([k.c for k in keeps], sides, torch.cat)
        keep.gates = None if keeps[0].gates is None else torch.cat([k.gates for k in keeps], -1)
    return join_units(ys, directions, torch.cat), tuple(torch.cat(of, -1) for of in zip(*lasts))


def try_step(
    cell: str, x: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor] | None, sizes: tuple[int, int, int]
) -> tuple[Tensor, ...] | None:
    """One step of x [B, I] from states [B, *] where nothing is differentiated and nothing needs a second look.

    Returns:
        The new states, or None where rnn_layer() has to be asked.
    """
    if _grad_enabled() or is_watched() or _oracle.CHECK:
        return None
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    call = prepare(cell, x, h0, c0, None, weights, 1, False, sizes, True)
    if call is None:
        return None
    _, h, c, _ = _kernels.forward(call, cell, x, h0, c0, None, None, weights, 1, False, "", 0, False)
    return (h,) if c is None else (h, c)
