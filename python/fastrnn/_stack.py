"""A stack of recurrent layers over x in any of its forms: batched, unbatched, packed, narrow; each layer is one
ops.rnn_layer(). The modules of fastrnn.nn and the functions of fastrnn.functional are thin coats of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as _dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import _backends, _checks
from ._backprop import Backprop
from ._cells import CELLS, NORMALISED, state_sizes
from ._heads import check_heads
from ._layer_checks import check_candidate, check_input, check_states
from ._noise import Rates
from ._tensor_checks import NARROW_DTYPES, as_lengths, check_dense, check_like
from .ops import Keep, rnn_heads, rnn_layer

State = tuple[Tensor | None, ...]  # None, in a state that is given: zeros
_autocast_enabled = torch.is_autocast_enabled


class Stack(NamedTuple):
    """What a call needs to know besides tensors; modules make it once."""

    function: str  # for errors
    cell: str
    layers: int
    directions: int
    per_direction: int  # weights: w_ih, w_hh, then b_ih, b_hh, then w_hr
    sizes: tuple[int, int, int]  # I, H, P
    batch_first: bool
    dropout: float
    suffix: str = "_l0"  # of the first layer's names; empty for a cell module
    rates: Rates | None = None  # regularisers of the recurrence; None without
    kept: list[tuple[Tensor | None, ...]] | None = None  # gets h, c and gates of each layer; None if nobody asks
    with_gates: bool = False
    backprop: Backprop | None = None  # options of backward; None without
    reset_to: str = "zero"  # or "initial": what enters where reset_mask is true
    num_heads: int = 1  # blocks on the diagonal of the recurrent matrix


class States(NamedTuple):
    """The states of all steps, layer by layer; zero past the lengths."""

    h: tuple[Tensor, ...]  # L times [T, B, D*(H or P)], the output of each layer
    c: tuple[Tensor, ...]  # L times [T, B, D*H]; empty for cells without c
    gates: tuple[Tensor, ...]  # L times [T, B, D, G, H], after activation, no gradient; empty unless asked for


class MemoryStates(NamedTuple):
    """States of a cell with a normaliser n and a stabiliser m."""

    h: tuple[Tensor, ...]
    c: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    n: tuple[Tensor, ...]  # L times [T, B, D*H], as c
    m: tuple[Tensor, ...]


def as_states(function: str, state: object, count: int = 2) -> State | None:
    """The state of an LSTM or sLSTM as a tuple, or the error that torch.nn.LSTM leaves to chance."""
    if state is None:
        return None
    names = f"({', '.join(_checks.STATE_NAMES[:count])})"
    if not isinstance(state, (tuple, list)):
        raise _checks.type_error(function, "state", state, f"a {'pair' if count == 2 else 'tuple'} {names}")
    if len(state) != count:
        _checks.check_count(function, "state", len(state), f"{count}: {names}")
    return tuple(state)


def each(f: Callable[[Tensor], Tensor], states: State | None) -> State | None:
    """f of every state that is there."""
    return None if states is None else tuple(None if s is None else f(s) for s in states)


def as_single(function: str, state: object) -> State | None:
    """The one state of a GRU or RNN as a tuple, like the LSTM's."""
    if state is None:
        return None
    if not isinstance(state, Tensor):
        raise _checks.type_error(function, "state", state, "a torch.Tensor h0")
    return (state,)


def infer_stack(
    function: str,
    cell: str,
    weights: Sequence[Tensor],
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    rates: Rates | None = None,
    backprop: Backprop | None = None,
    num_heads: int = 1,
    reset_to: str = "zero",
) -> Stack:
    """Layers, biases, projection and sizes, as the list of weights has them."""
    _checks.check_probability(function, "dropout", dropout)
    gates, D = CELLS[cell][0], 2 if bidirectional else 1
    for i, w in enumerate(weights):
        check_dense(function, f"weights[{i}]", w)
    if len(weights) < 2 or weights[0].ndim != 2 or weights[1].ndim != 2:
        got = [tuple(w.shape) for w in weights[:2]]
        raise _checks.ShapeError(
            f"{function}: weights begins with shapes {got}, expected w_ih (G*H, I) and w_hh (G*H, H), G = {gates}"
        )
    n = 4 if len(weights) > 2 and weights[2].ndim == 1 else 2
    rows = weights[0].shape[0]
    projected = CELLS[cell][1] == 2 and len(weights) > n and weights[n].ndim == 2 and weights[n].shape[0] != rows
    n += projected
    if len(weights) % (n * D):
        _checks.check_count(function, "weights", len(weights), f"a multiple of {n * D}: {n} for each direction")
    if not rows or rows % gates:
        shape = tuple(weights[0].shape)
        raise _checks.ShapeError(
            f"{function}: weight_ih_l0 has shape {shape}, expected G*H = a multiple of {gates} rows"
        )
    sizes = (weights[0].shape[1], rows // gates, weights[n - 1].shape[0] if projected else 0)
    _checks.check_zoneout(function, rates, sizes[2])
    _checks.check_reset_to(function, reset_to)
    check_candidate(function, cell, 0.0 if rates is None else rates.candidate_dropout)
    check_heads(function, num_heads, *sizes[1:], cell in NORMALISED)
    return Stack(
        function,
        cell,
        len(weights) // (n * D),
        D,
        n,
        sizes,
        batch_first,
        float(dropout),
        rates=rates,
        backprop=backprop,
        reset_to=reset_to,
        num_heads=num_heads,
    )


def run(
    stack: Stack,
    x: Tensor | PackedSequence,
    states: State | None,
    weights: Sequence[Tensor],
    training: bool,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, State]:
    """The stack over x in any of its forms: batched, unbatched or packed."""
    if stack.kept is not None and isinstance(x, PackedSequence):
        raise ValueError(
            f"{stack.function}: return_states is True with a PackedSequence, expected a tensor and lengths"
        )
    if isinstance(x, Tensor) and x.ndim == 3:
        if lengths is not None:
            lengths = as_lengths(stack.function, lengths, None, x)
        return run_batched(stack, x, states, weights, training, lengths, reset_mask)
    if isinstance(x, PackedSequence):
        return _run_packed(stack, x, states, weights, training, lengths, reset_mask)
    if not isinstance(x, Tensor) or x.ndim != 2:
        check_input(stack.function, x, "(B, T, I)" if stack.batch_first else "(T, B, I)", " or (T, I)")
    if lengths is not None:
        raise _checks.ShapeError(f"{stack.function}: lengths is given, expected none with unbatched x (T, I)")
    if states is not None:
        _, H, P = stack.sizes
        rows = stack.layers * stack.directions
        for name, s, (width, symbol) in zip(_checks.STATE_NAMES, states, state_sizes(stack.cell, H, P)):
            if s is not None:
                check_like(stack.function, name, s, x)
                _checks.check_shape(stack.function, name, s.shape, f"(L*D, {symbol})", (rows, width))
        states = each(lambda s: s.unsqueeze(1), states)

    def as_batch(name: str, mask: object) -> object:
        if isinstance(mask, Tensor):
            _checks.check_shape(stack.function, name, mask.shape, "(T,)", x.shape[:1])
            mask = mask.unsqueeze(1)
        return mask

    stack, reset_mask = _map_masks(as_batch, stack, reset_mask)
    y, last = run_batched(
        stack._replace(batch_first=False), x.unsqueeze(1), states, weights, training, None, reset_mask
    )
    if stack.kept is not None:
        stack.kept[:] = [tuple(None if t is None else t.squeeze(1) for t in layer) for layer in stack.kept]
    return y.squeeze(1), tuple(s.squeeze(1) for s in last)


def run_with_states(stack: Stack, gates: bool, *args: object) -> tuple[Tensor | PackedSequence, State, States]:
    """run(), and the states of every step."""
    stack = stack._replace(kept=[], with_gates=gates)
    y, last = run(stack, *args)
    layers = [() if of[0] is None else of for of in zip(*stack.kept)]
    return y, last, (States if len(layers) == 3 else MemoryStates)(*layers)


def _kept_states(cell: str, D: int, h: Tensor, c: Tensor | None, gates: Tensor | None) -> tuple[Tensor | None, ...]:
    """The states of all steps of one layer, from what Keep holds."""
    S = CELLS[cell][1]
    if S <= 2:
        return h, c, gates
    c, *more = (
        part.clone(memory_format=torch.contiguous_format).flatten(-2)
        for part in c.unflatten(-1, (D, S - 1, -1)).unbind(-2)
    )
    return h, c, gates, *more


def run_one_state(
    stack: Stack,
    x: Tensor | PackedSequence,
    state: Tensor | None,
    weights: Sequence[Tensor],
    training: bool,
    lengths: Tensor | Sequence[int] | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """run() of a cell whose state is h alone, given and returned as one tensor."""
    y, last = run(stack, x, as_single(stack.function, state), weights, training, lengths, reset_mask)
    return y, last[0]


def _map_masks(f: Callable[[str, object], object], stack: Stack, reset_mask: object) -> tuple[Stack, object]:
    """Brings reset_mask and detach_mask into the form that x is brought into."""
    if stack.backprop is not None and stack.backprop.detach_mask is not None:
        detach_mask = f("detach_mask", stack.backprop.detach_mask)
        stack = stack._replace(backprop=stack.backprop._replace(detach_mask=detach_mask))
    return stack, None if reset_mask is None else f("reset_mask", reset_mask)


def _run_packed(
    stack: Stack,
    packed: PackedSequence,
    states: State | None,
    weights: Sequence[Tensor],
    training: bool,
    lengths: object,
    reset_mask: Tensor | None,
) -> tuple[PackedSequence, State]:
    """Runs the rows in the sequence's own (sorted) order, as a ragged batch."""
    f = stack.function
    if lengths is not None:
        raise _checks.ShapeError(f"{f}: lengths is given, expected none with a PackedSequence")
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    check_input(f, data, "(sum of lengths, I)", name="x.data")
    rows = batch_sizes.tolist()
    if not rows or rows[-1] < 1 or any(a < b for a, b in zip(rows, rows[1:])) or sum(rows) != data.shape[0]:
        raise _checks.ShapeError(
            f"{f}: x.batch_sizes is {_short(rows)}, expected positive sizes, none above the one before, "
            f"of sum {data.shape[0]} (rows of x.data)"
        )
    x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes), batch_first=stack.batch_first)

    def sort(name: str, mask: object) -> object:
        if not isinstance(mask, Tensor) or mask.ndim != 2 or sorted_indices is None:
            return mask
        return mask.index_select(0 if stack.batch_first else 1, sorted_indices)

    stack, reset_mask = _map_masks(sort, stack, reset_mask)
    if states is not None:
        _check_whole_states(stack, x, states)
        if sorted_indices is not None:
            states = each(lambda s: s.index_select(1, sorted_indices), states)
    y, last = run_batched(stack, x, states, weights, training, lengths.to(x.device), reset_mask)
    if unsorted_indices is not None:
        last = tuple(s.index_select(1, unsorted_indices) for s in last)
    data = pack_padded_sequence(y, lengths, batch_first=stack.batch_first).data
    return PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices), last


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, ...]"


def _check_whole_states(stack: Stack, x: Tensor, states: State) -> None:
    _, H, P = stack.sizes
    B = x.shape[0 if stack.batch_first else 1]
    check_states(stack.function, stack.cell, x, states, stack.layers * stack.directions, B, H, P, "L*D")


def run_batched(
    stack: Stack,
    x: Tensor,
    states: State | None,
    weights: Sequence[Tensor],
    training: bool,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The stack over x [T, B, I] ([B, T, I] with batch_first), whatever its dtype."""
    if _autocast_enabled("cuda" if x.is_cuda else "cpu") or (
        x.dtype in NARROW_DTYPES and x.dtype not in _backends.kernels_of(x).DTYPES
    ):
        return _run_narrow(stack, x, states, weights, training, lengths, reset_mask)
    plain = stack.rates is None and stack.kept is None and stack.backprop is None and stack.num_heads == 1
    if stack.layers == 1 and plain:
        function, cell, _, D, _, sizes, batch_first, _, suffix, *_ = stack
        return rnn_layer(
            cell, x, weights, states, lengths, reset_mask, directions=D, batch_first=batch_first, function=function,
            suffix=suffix, expected=sizes, reset_to=stack.reset_to,
        )  # fmt: skip
    return _run_layers(stack, x, states, weights, training, lengths, reset_mask)


def _run_layers(
    stack: Stack,
    x: Tensor,
    states: State | None,
    weights: Sequence[Tensor],
    training: bool,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor, State]:
    function, cell, L, D, n, (I, H, P), batch_first, p, suffix, rates, kept, with_gates, backprop, reset_to, heads = (
        stack
    )
    if rates is not None or states is not None:
        check_input(function, x, "(B, T, I)" if batch_first else "(T, B, I)")
    if states is not None:
        _check_whole_states(stack, x, states)
    B = 0 if rates is None else x.shape[0 if batch_first else 1]
    if rates is not None and rates.weight_dropout and training:
        weights = list(weights)
        for k in range(L * D):
            weights[k * n + 1] = rates.drop_weights(k // D, k % D, weights[k * n + 1])
    n *= D
    run_one = rnn_layer if heads == 1 else partial(rnn_heads, heads)
    lasts = []
    for k in range(L):
        if k and p and training:
            x = _dropout(x, p)
        if rates is not None and training:
            x = rates.drop_input(k, x, batch_first)
        keep = None if kept is None else Keep(with_gates)
        x, last = run_one(
            cell, x, weights[k * n : (k + 1) * n],
            each(lambda s, k=k: s[k * D : (k + 1) * D], states),
            lengths, reset_mask, directions=D, batch_first=batch_first, function=function,
            suffix=f"_l{k}" if k else suffix, expected=(D * (P or H) if k else I, H, P),
            noise=None if rates is None else rates.of_layer(k, training, x, B, P or H, D), backprop=backprop, keep=keep,
            reset_to=reset_to,
        )  # fmt: skip
        if kept is not None:
            kept.append(_kept_states(cell, D, x, keep.c, keep.gates))
        lasts.append(last)
    if rates is not None and training:
        x = rates.drop_output(L - 1, x, batch_first)
    return x, tuple(lasts[0]) if L == 1 else tuple(torch.cat(s) for s in zip(*lasts))


def _run_narrow(
    stack: Stack,
    x: Tensor,
    states: State | None,
    weights: Sequence[Tensor],
    training: bool,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor, State]:
    """Autocast, and dtypes that the kernels of the device lack: round to the narrow dtype, then compute in one that the
    kernels have, with the state in float32, and round y."""
    f = stack.function
    check_input(f, x, "(B, T, I)" if stack.batch_first else "(T, B, I)")
    names = [
        name
        for k in range(stack.layers)
        for name in _checks.weight_names(
            stack.directions, stack.per_direction >= 4, bool(stack.per_direction & 1), f"_l{k}" if k else stack.suffix
        )
    ]
    named = [*zip(names, weights), *((n, s) for n, s in zip(_checks.STATE_NAMES, states or ()) if s is not None)]
    dtype, device = x.dtype, "cuda" if x.is_cuda else "cpu"
    if _autocast_enabled(device) and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(device)
        for name, t in named:  # as torch does, autocast leaves float64 alone
            if isinstance(t, Tensor) and (t.dtype is torch.float64 or not t.dtype.is_floating_point):
                raise _checks.dtype_error(f, name, t.dtype, f"{x.dtype} (the dtype of x) or one that autocast converts")
    else:
        for name, t in named:
            check_like(f, name, t, x)
    wide = dtype if dtype in _backends.kernels_of(x).DTYPES else torch.float32

    def widen(t: Tensor) -> Tensor:
        return t.to(dtype).to(wide) if isinstance(t, Tensor) else t

    y, last = _run_layers(
        stack, widen(x), each(widen, states), [widen(w) for w in weights], training, lengths, reset_mask
    )
    if stack.kept is not None:
        stack.kept[:] = [tuple(None if t is None else t.to(dtype) for t in layer) for layer in stack.kept]
    return y.to(dtype), tuple(s.to(dtype) for s in last)
