"""The compiled kernels seen from torch: checked tensors in, new tensors out, one `_core` call, no autograd.

Shapes, dtypes and devices have been checked by ops.py. This file adds what only memory can tell (strides, freed
storages, the values in `lengths`) and turns tensors into addresses. Every buffer has a name below until the call is
over, so that no address outlives its memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _core, _oracle
from ._backprop import Backprop
from ._cells import CELLS, LANES, NORMALISED, kept_shape, sizes, width_beyond
from ._checks import STATE_NAMES, check_lengths, check_norm, function_of, weight_names, weight_shapes
from ._memory import address_of, check_storage, dense, kept_empty
from ._noise import Noise
from .threads import current as current_threads

DTYPES = (torch.float32, torch.float64)
_core_forward, _core_backward = _core.rnn_forward, _core.rnn_backward
_bool = torch.bool


def five_per_direction(addresses: list[int], n: int) -> list[int]:
    """Spreads n addresses per direction over w_ih, w_hh, b_ih, b_hh, w_hr, 0 where absent."""
    if n == 5:
        return addresses
    if n == 4 and len(addresses) == 4:
        return [*addresses, 0]
    out: list[int] = []
    for d in range(0, len(addresses), n):
        a = addresses[d : d + n]
        out += [*a[:2], *(a[2:4] if n == 4 else (0, 0)), a[2] if n == 3 else 0]
    return out


@functools.lru_cache(maxsize=256)
def _weight_table(cell: str, I: int, H: int, P: int, directions: int, n: int) -> list[tuple[tuple[int, ...], int]]:
    shapes = weight_shapes(CELLS[cell][0], I, H, P, directions, n >= 4, *CELLS[cell][3:])
    return [(shape, math.prod(shape)) for shape in shapes]


def prepare(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    reset_mask: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    expected: tuple[int, int, int] | None,
    one_step: bool = False,
) -> tuple | None:
    """Sizes and addresses for a kernel if every argument is plain, right and in place; else None, and the slow path
    explains or copies. One pass, because this is what a call on a small network costs.

    one_step: x is [B, I] and the states are [B, *], as cell modules have them.
    """
    if type(x) is not Tensor and type(x) is not Parameter:
        return None
    try:
        if one_step:
            (n1, I), (s1, s2) = x.shape, x.stride()
            n0, s0 = 1, 0
        else:
            (n0, n1, I), (s0, s1, s2) = x.shape, x.stride()
        dtype = x.dtype
        item = 4 if dtype is torch.float32 else 8 if dtype is torch.float64 else 0
        if not x.is_cpu or not item or not n0 or not n1 or not I or (s2 != 1 and I != 1) or x.is_neg():
            return None
        nbytes = x.untyped_storage().nbytes()
        if (x.storage_offset() + (n0 - 1) * s0 + (n1 - 1) * s1 + I) * item > nbytes:
            return None
        n = len(weights) // directions
        if expected is None:
            _, _, _, H, P, _ = sizes(cell, x, weights, directions, batch_first)
        else:
            expected_I, H, P = expected
            if I != expected_I:
                return None
        table = _weight_table(cell, I, H, P, directions, n)
        if len(weights) != len(table) or n & 1 != (P > 0) or (n < 4 and CELLS[cell][3]):
            return None
        if not H:
            return None
        addresses = []
        low = x_address = x.data_ptr()
        seen = [(x_address, nbytes)]
        for w, (shape, numel) in zip(weights, table):
            nbytes = w.untyped_storage().nbytes()
            if (
                w.shape != shape
                or w.dtype is not dtype
                or not w.is_cpu
                or not w.is_contiguous()
                or (w.storage_offset() + numel) * item > nbytes
                or w.is_neg()
                or (type(w) is not Parameter and type(w) is not Tensor)
            ):
                return None
            address = w.data_ptr()
            addresses.append(address)
            seen.append((address, nbytes))
            low |= address
        states = []
        B = n0 if batch_first else n1
        rows = (B,) if one_step else (directions, B)
        beyond = (CELLS[cell][1] - 1) * H  # width_beyond(), without the call
        if c0 is not None and not beyond:
            return None
        for s, width in ((h0, P or H), (c0, beyond)) if beyond else ((h0, H),):
            if s is None:
                states.append(0)
                continue
            nbytes = s.untyped_storage().nbytes()
            if (
                s.shape != (*rows, width)
                or s.dtype is not dtype
                or not s.is_cpu
                or not s.is_contiguous()
                or (s.storage_offset() + directions * B * width) * item > nbytes
                or s.is_neg()
                or (type(s) is not Tensor and type(s) is not Parameter)
            ):
                return None
            address = s.data_ptr()
            states.append(address)
            seen.append((address, nbytes))
            low |= address
        mask = mask_0 = mask_1 = 0
        if reset_mask is not None:
            nbytes = reset_mask.untyped_storage().nbytes()
            mask_0, mask_1 = reset_mask.stride()
            if (
                type(reset_mask) is not Tensor
                or reset_mask.dtype is not _bool
                or not reset_mask.is_cpu
                or reset_mask.shape != (n0, n1)
                or reset_mask.storage_offset() + (n0 - 1) * mask_0 + (n1 - 1) * mask_1 >= nbytes
            ):
                return None
            mask = reset_mask.data_ptr()
            seen.append((mask, nbytes))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError):
        return None  # not tensors, sparse, another rank
    if low & (item - 1):  # misaligned, as torch.frombuffer allows
        return None
    if batch_first:
        n0, n1, s0, s1, mask_0, mask_1 = n1, n0, s1, s0, mask_1, mask_0
    five = five_per_direction(addresses, n)
    return item, n0, n1, I, H, P, x_address, s0, s1, five, states, mask, mask_0, mask_1, rows, seen


def _still_there(call: tuple, x: Tensor, weights: Sequence[Tensor], others: Sequence[Tensor | None]) -> bool:
    """Whether these are in the memory where prepare() saw them; their storages may have been freed or moved since.

    others: h0, c0, reset_mask.
    """
    tensors = (x, *weights, *(t for t in others if t is not None))
    return [(t.data_ptr(), t.untyped_storage().nbytes()) for t in tensors] == call[-1]


def _rows(cell: str, name: str, t: Tensor, batch_first: bool) -> tuple[Tensor, int, int]:
    """The tensor with its last dimension contiguous, and its strides over t and b."""
    check_storage(function_of(cell), name, t)
    (n0, n1, n2), (s0, s1, s2) = t.shape, t.stride()
    if t.is_neg() or (s2 != 1 and n2 > 1) or t.data_ptr() % t.element_size():
        if s0 == s1 == 0 and n0 and n1:  # expanded, as the gradient of y.sum() is: one row serves for all
            return t[0, 0].resolve_neg().clone(memory_format=torch.contiguous_format), 0, 0
        t = t.resolve_neg().clone(memory_format=torch.contiguous_format)
        s0, s1, _ = t.stride()
    return (t, s1, s0) if batch_first else (t, s0, s1)


def prepare_any(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    reset_mask: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> tuple:
    """prepare() for arguments that check_layer() has passed: copies what a kernel cannot read in place."""
    T, B, I, H, P, n = sizes(cell, x, weights, directions, batch_first)
    x, s0, s1 = _rows(cell, "x", x, batch_first)
    names = weight_names(directions, n >= 4, P > 0)
    weights = [dense(function_of(cell), name, w) for name, w in zip(names, weights)]
    states = [dense(function_of(cell), name, s) for name, s in zip(STATE_NAMES, (h0, c0)[: CELLS[cell][1]])]
    addresses = five_per_direction([w.data_ptr() for w in weights], n)
    call = x.element_size(), T, B, I, H, P, x.data_ptr(), s0, s1, addresses, [*map(address_of, states)]
    mask = _mask_in_place(cell, "reset_mask", reset_mask, batch_first)
    return *call, *mask, (directions, B), (x, weights, states)  # the last keeps the memory


def _mask_in_place(cell: str, name: str, mask: Tensor | None, batch_first: bool) -> tuple[int, int, int]:
    """Address and strides over t and b: a mask is read where it lies."""
    if mask is None:
        return 0, 0, 0
    check_storage(function_of(cell), name, mask)
    s0, s1 = mask.stride()
    return (mask.data_ptr(), s1, s0) if batch_first else (mask.data_ptr(), s0, s1)


def _checked_lengths(cell: str, lengths: Tensor | None, T: int) -> Tensor | None:
    """lengths as int64; the values are read here because no earlier layer may."""
    if lengths is None:
        return None
    lengths = dense(function_of(cell), "lengths", lengths.to(torch.int64))
    if lengths.numel():
        lowest, highest = lengths.aminmax()
        check_lengths(function_of(cell), int(lowest), int(highest), T)
    return lengths


def forward(
    call: tuple,
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    schedule: str,
    threads: int,
    training: bool,
    whole_reserve: bool = False,
    noise: Noise | None = None,
    backprop: Backprop | None = None,
    reset_to_initial: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Runs the layer: y, h, c (None for cells with one state) and the reserve (None unless training); with checkpoints
    those instead.

    `call` comes from prepare() or prepare_any(). whole_reserve zeroes what the kernel leaves unwritten, so that an
    operator's outputs are reproducible. reset_to_initial: where reset_mask is true h0 and c0 enter, not zeros.
    """
    item, T, B, I, H, P, x_address, x_t, x_b, addresses, states_in, *mask, rows, _ = call
    for k in range(0, len(weights) if cell in NORMALISED else 0, len(weights) // directions):
        check_norm(function_of(cell), H, weights[k + 2], weights[k + 3])
    out = P or H
    width = directions * out
    if batch_first:
        y, y_t, y_b = x.new_empty(B, T, width), width, T * width
    else:
        y, y_t, y_b = x.new_empty(T, B, width), B * width, width
    h = x.new_empty(*rows, out)
    if len(states_in) == 2:
        c = x.new_empty(*rows, width_beyond(cell, H))
        states_out = [h.data_ptr(), c.data_ptr()]
    else:
        c, states_out = None, [h.data_ptr()]
    lengths64 = None if lengths is None else _checked_lengths(cell, lengths, T)
    reserve, reserve_address, backward_options = None, 0, None
    if training:
        shape = kept_shape(cell, item, (T, B, I, H, P, directions), noise, backprop)
        if backprop is not None and backprop.checkpoint_every:
            reserve = x.new_zeros(shape) if whole_reserve else x.new_empty(shape)
            backward_options = (backprop.segment_steps(cell, item, T, B, I, H, P, directions), 0.0, 0, 0, 0)
        elif whole_reserve and (lengths is not None or H % LANES or cell in NORMALISED):
            reserve = x.new_zeros(shape)
        else:
            reserve = kept_empty(x, *shape)
        reserve_address = reserve.data_ptr()
    _core_forward(
        cell, item, T, B, I, H, P, directions, x_address, x_t, x_b, addresses, states_in, address_of(lengths64),
        *mask, y.data_ptr(), y_t, y_b, states_out, reserve_address, schedule, threads or current_threads(),
        None if noise is None else noise.for_core(), backward_options, reset_to_initial,
    )  # fmt: skip
    if _oracle.CHECK:
        _oracle.check_forward(
            cell,
            (x, h0, c0, lengths, reset_mask, weights, directions, batch_first, noise, False, None, reset_to_initial),
            (y, h, c),
        )
    return y, h, c, reserve


def backward(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    schedule: str,
    threads: int,
    y: Tensor,
    reserve: Tensor,
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    wanted: Sequence[bool],
    call: tuple | None = None,
    noise: Noise | None = None,
    dcs: Tensor | None = None,
    backprop: Backprop | None = None,
    reset_to_initial: bool = False,
) -> list[Tensor]:
    """Gradients of x, h0, c0 and each weight, only those that `wanted` asks for, in this order.

    `call` is what prepare() found in forward, if anything: it saves a second look at every tensor. dcs: the gradient of
    the states beyond h of every step, [T, B, D*(S-1)*H] or [B, T, D*(S-1)*H].
    """
    if call is None or not _still_there(call, x, weights, (h0, c0, reset_mask)):
        call = prepare(cell, x, h0, c0, reset_mask, weights, directions, batch_first, None)
    plain = call is not None  # then the weights are contiguous
    if not plain:
        call = prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    item, T, B, I, H, P, x_address, x_t, x_b, addresses, states_in, *mask, _, _ = call
    y, y_t, y_b = _rows(cell, "y", y, batch_first)
    dh, dc = dense(function_of(cell), "dh", dh), dense(function_of(cell), "dc", dc)
    dy_t = dy_b = 0
    if dy is not None:
        dy, dy_t, dy_b = _rows(cell, "dy", dy, batch_first)
    dcs_t = dcs_b = 0
    if dcs is not None:
        dcs, dcs_t, dcs_b = _rows(cell, "dc", dcs, batch_first)
    lengths64 = _checked_lengths(cell, lengths, T)
    reserve = dense(function_of(cell), "reserve", reserve)
    options = None
    if backprop is not None:
        detach = _mask_in_place(cell, "detach_mask", backprop.detach_mask, batch_first)
        segment = backprop.segment_steps(cell, item, T, B, I, H, P, directions)
        options = (segment, backprop.grad_clip, *detach)

    # x may be expanded and weights may be views: gradients are new contiguous tensors of the same shape.
    shapes = [x.shape, (directions, B, P or H), (directions, B, width_beyond(cell, H))]
    grads = [x.new_empty(shape) if want else None for shape, want in zip(shapes, wanted)]
    for w, want in zip(weights, wanted[3:]):
        grads.append(None if not want else torch.empty_like(w) if plain else x.new_empty(w.shape))
    dx, dh0, dc0, *dweights = map(address_of, grads)
    dx_t, dx_b = (I, T * I) if batch_first else (B * I, I)
    S = len(states_in)
    _core_backward(
        cell, item, T, B, I, H, P, directions, x_address, x_t, x_b, addresses, states_in, address_of(lengths64),
        *mask, y.data_ptr(), y_t, y_b, reserve.data_ptr(), address_of(dy), dy_t, dy_b,
        [address_of(dh), address_of(dc)][:S], address_of(dcs), dcs_t, dcs_b, dx, dx_t, dx_b, [dh0, dc0][:S],
        five_per_direction(dweights, len(weights) // directions), schedule, threads or current_threads(),
        None if noise is None else noise.for_core(), options, reset_to_initial,
    )  # fmt: skip
    found = [g for g in grads if g is not None]
    if _oracle.CHECK:
        inputs = (x, h0, c0, *weights)
        above = (dy, dh, dc) if dcs is None else (dy, dh, dc, dcs)
        rest = (lengths, reset_mask, directions, batch_first, noise, backprop, reset_to_initial)
        _oracle.check_backward(cell, inputs, rest, above, wanted, found)
    return found


def kept_states(
    cell: str,
    reserve: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_first: bool,
    with_gates: bool,
    first: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """What forward kept, as users know it: the states beyond h of every step [T, B, D*(S-1)*H] (None for cells without)
    and, if asked for, the gates after their activation [T, B, D, G, H] (B first with batch_first); zero past the lengths.
    first: the slot of c, if not behind the gates."""
    G, S, slots, *_ = CELLS[cell]
    H = weights[0].shape[0] // G
    kept = reserve[..., :H].permute(2, 1, 0, 3, 4) if batch_first else reserve[..., :H].permute(1, 2, 0, 3, 4)
    first = slots - (S - 1) if first is None else first
    # Copies: backward still reads the reserve, and the caller may write into what he gets.
    beyond = kept[..., first : first + S - 1, :]
    c = beyond.clone(memory_format=torch.contiguous_format).flatten(2) if S > 1 else None
    gates = kept[..., :G, :].clone(memory_format=torch.contiguous_format) if with_gates else None
    if lengths is not None:
        T = kept.shape[1 if batch_first else 0]
        beyond = torch.arange(T, device=reserve.device)[:, None] >= lengths.to(reserve.device)
        beyond = beyond.t() if batch_first else beyond
        c = None if c is None else c.masked_fill(beyond[..., None], 0)
        if with_gates:
            gates.masked_fill_(beyond[..., None, None, None], 0)
    return c, gates
