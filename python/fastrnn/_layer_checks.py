"""Checks of the tensor arguments of one recurrent layer: what is wrong, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _backends, _checks, _devices
from ._backprop import Backprop
from ._cells import CELLS, NORMALISED, WITH_CANDIDATE, state_sizes, width_beyond
from ._tensor_checks import check_dense, check_device, check_floats, check_like

HAS_BIAS = {2: False, 3: False, 4: True, 5: True}  # by the number of weights per direction; an odd one has w_hr


def check_input(function: str, x: object, symbols: str, hint: str = "", name: str = "x") -> None:
    """Raises unless x is a dense floating-point tensor, of the named rank, on a device that has kernels."""
    check_floats(function, name, x, "; convert it with .to()")
    if reason := _devices.why_not(x.device.type):
        raise _checks.DeviceError(
            f"{function}: {name} is on {x.device}, expected a device with kernels: {reason}; "
            "move the module and its input to cpu, or turn it back with fastrnn.to_torch"
        )
    _checks.check_rank(function, name, x.shape, symbols, hint)


def _weight_sizes(function: str, gates: int, weights: Sequence[Tensor], n: int, names: list[str]) -> tuple[int, ...]:
    """I, H and P as the first direction's weights have them."""
    _checks.check_rank(function, names[0], weights[0].shape, "(G*H, I)")
    GH, I = weights[0].shape
    if GH % gates or not GH:
        raise _checks.ShapeError(
            f"{function}: {names[0]} has shape {tuple(weights[0].shape)}, expected G*H = a multiple of {gates} rows"
        )
    if not n & 1:
        return I, GH // gates, 0
    _checks.check_rank(function, names[n - 1], weights[n - 1].shape, "(P, H)")
    _checks.check_size(function, names[n - 1], "P", weights[n - 1].shape[0])
    return I, GH // gates, weights[n - 1].shape[0]


def check_layer(
    function: str,
    cell: str,
    x: Tensor,
    states: Sequence[Tensor | None],
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    suffix: str = "",
    expected: tuple[int, int, int] | None = None,
    num_heads: int = 1,
) -> None:
    """Raises the error that names what is wrong with one layer's arguments; plain and traceable, not fast.

    Args:
        suffix: of the weights' names, such as `_l0`.
        expected: I, H and P where the caller knows them; otherwise the weights must agree with each other.
    """
    if cell not in CELLS:
        raise ValueError(f"{function}: cell is {cell!r}, expected one of {', '.join(CELLS)}")
    if directions not in (1, 2):
        raise ValueError(f"{function}: directions is {directions!r}, expected 1 or 2")
    gates = CELLS[cell][0]
    check_input(function, x, "(B, T, I)" if batch_first else "(T, B, I)")
    if x.dtype not in _backends.kernels_of(x).DTYPES:
        hint = "; fastrnn.functional and fastrnn.nn convert narrower ones"
        raise _checks.dtype_error(function, "x", x.dtype, "torch.float32 or torch.float64", hint)
    n, rest = divmod(len(weights), directions)
    if rest or n not in HAS_BIAS or (n & 1 and CELLS[cell][1] != 2):
        per_direction = (
            "2, 3 (with w_hr), 4 (with biases) or 5 (with both)" if CELLS[cell][1] == 2 else "2 or 4 (with biases)"
        )
        _checks.check_count(function, "weights", len(weights), f"{per_direction} for each of {directions} directions")
    names = _checks.weight_names(directions, HAS_BIAS[n], bool(n & 1), suffix)
    for name, w in zip(names, weights):
        check_like(function, name, w, x)
    I, H, P = expected or _weight_sizes(function, gates, weights, n, names)
    shapes = [w.shape for w in weights]
    first = suffix in ("", "_l0")
    _checks.check_weights(
        function, gates, shapes, I, H, P, directions, HAS_BIAS[n], suffix, first, *CELLS[cell][3:], num_heads
    )
    n0, n1, _ = x.shape
    T, B = (n1, n0) if batch_first else (n0, n1)
    _checks.check_size(function, "x", "I", x.shape[2])
    _checks.check_shape(function, "x", x.shape, "(B, T, I)" if batch_first else "(T, B, I)", (n0, n1, I))
    _checks.check_size(function, "x", "T", T)
    check_states(function, cell, x, states, directions, B, H, P, "L*D" if suffix else "D")
    check_rows(function, x, lengths, reset_mask, T, B, batch_first)


def check_candidate(function: str, cell: str, p: float) -> None:
    """Raises if the candidate of a cell that has none that could be dropped is to be dropped."""
    if p and cell not in WITH_CANDIDATE:
        what = "is layer-normalised" if cell in NORMALISED else "has no candidate beside a gate"
        raise ValueError(f"{function}: candidate_dropout is {p}, expected 0: {cell} {what}")


def check_states(
    function: str, cell: str, x: Tensor, states: Sequence[Tensor | None], D: int, B: int, H: int, P: int, symbol: str
) -> None:
    """Raises unless the states given are h0 [D, B, P or H] and, for cells that have them, c0, n0 and m0 [D, B, H], or in
    the place of c0 all of them side by side."""
    widths = state_sizes(cell, H, P)
    if len(states) == 2 < len(widths):
        widths = [widths[0], (width_beyond(cell, H), f"{len(widths) - 1}*H")]
    for name, s, (width, w) in zip(_checks.STATE_NAMES, states, widths):
        if s is not None:
            check_like(function, name, s, x)
            _checks.check_shape(function, name, s.shape, f"({symbol}, B, {w})", (D, B, width))
    if CELLS[cell][1] == 1 and len(states) > 1 and states[1] is not None:
        raise _checks.ShapeError(f"{function}: c0 is given, expected none: {cell} has one state")


def check_state_count(function: str, cell: str, states: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The states of a call, all or none of which have to be given where a cell has more than two."""
    names = _checks.STATE_NAMES[: CELLS[cell][1]]
    if len(states) != len(names):
        _checks.check_count(function, "state", len(states), f"{len(names)}: ({', '.join(names)})")
    return tuple(states)


def check_zoned(function: str, cell: str, zoneout: tuple[float, float]) -> None:
    """Raises if zoneout is to keep units of a normalised cell, or single ones of states that only mean something
    together."""
    p = zoneout[1]
    if any(zoneout) and cell in NORMALISED:
        raise ValueError(f"{function}: zoneout is {zoneout} with {cell}, expected 0: no cell has both")
    if p and CELLS[cell][1] > 2:
        names = ", ".join(_checks.STATE_NAMES[1 : CELLS[cell][1]]).replace("0", "")
        raise ValueError(f"{function}: zoneout of c is {p}, expected 0: {names} of {cell} cannot be blended one by one")


def check_backprop(function: str, cell: str, x: Tensor, options: Backprop, keeps: str, batch_first: bool) -> None:
    """Raises unless the options of backward suit x, the cell and what else the caller wants: keeps is "",
    "return_states" or "return_gates"."""
    on_cuda = isinstance(x, Tensor) and _backends.kernels_of(x) is not _backends._kernels
    has_states = on_cuda and keeps == "return_states" and CELLS[cell][1] <= 2  # of an sLSTM without m
    if options.checkpoint_every and keeps and not has_states:
        raise ValueError(
            f"{function}: {keeps} is True with checkpoint_every={options.checkpoint_every}, expected one of the two: "
            "what every step computed is what checkpoints do not keep"
        )
    if options.grad_clip and (cell in NORMALISED or not CELLS[cell][4]):
        what = "is layer-normalised" if cell in NORMALISED else "has no recurrent product"
        raise ValueError(f"{function}: grad_clip is {options.grad_clip}, expected 0: {cell} {what}")
    mask = options.detach_mask
    if mask is not None:
        check_input(function, x, "(B, T, I)" if batch_first else "(T, B, I)")
        _check_mask(function, "detach_mask", mask, x, "(B, T)" if batch_first else "(T, B)", tuple(x.shape[:2]))


def _check_mask(function: str, name: str, mask: object, x: Tensor, symbols: str, expected: tuple[int, ...]) -> None:
    check_dense(function, name, mask, "a bool tensor")
    check_device(function, name, mask, x)
    if mask.dtype is not torch.bool:
        raise _checks.dtype_error(function, name, mask.dtype, "torch.bool")
    _checks.check_shape(function, name, mask.shape, symbols, expected)


def check_rows(
    function: str, x: Tensor, lengths: object, reset_mask: object, T: int, B: int, batch_first: bool
) -> None:
    """Raises unless lengths is an integer tensor [B] and reset_mask a bool tensor [T, B] (or [B, T])."""
    if lengths is not None:
        check_dense(function, "lengths", lengths, "an integer tensor")
        check_device(function, "lengths", lengths, x)
        if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype is torch.bool:
            raise _checks.dtype_error(function, "lengths", lengths.dtype, "an integer dtype")
        _checks.check_shape(function, "lengths", lengths.shape, "(B,)", (B,))
    if reset_mask is not None:
        symbols, expected = ("(B, T)", (B, T)) if batch_first else ("(T, B)", (T, B))
        _check_mask(function, "reset_mask", reset_mask, x, symbols, expected)
