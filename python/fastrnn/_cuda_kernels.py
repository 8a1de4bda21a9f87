"""The CUDA kernels seen from torch, with the interface of _kernels.py.

A layer is three parts: the input projection, one long product, by torch (cuBLAS); the recurrence, one call of `_cuda`;
and after backward's recurrence the long products that give the gradients of weights and input, by torch again. Float32
products follow torch.backends.cuda.matmul.allow_tf32, which is off unless the user turns it on; the recurrence is
always float32. Work goes to the caller's current stream. Nothing synchronises: values in `lengths` are clamped by the
kernel.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from . import _cells, _cuda_norm, _cuda_projected, _kernels, _oracle
from . import _cuda_projection as projection
from ._backprop import Backprop
from ._cells import CELLS, NORMALISED, sizes, width_beyond
from ._checks import STATE_NAMES, function_of, weight_names
from ._cuda_products import (
    Direction,
    input_gradient,
    project_again,
    project_input,
    weight_gradients,
    without_autocast,
)  # fmt: skip
from ._memory import address_of, dense
from ._noise import Noise

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_LOG = os.environ.get("FASTRNN_LOG") == "1"
_QUIET = (0, 0.0, 0.0, False, 0, 0.0, False)  # no regulariser, see _noise.Noise.for_core
_FORCED = os.environ.get("FASTRNN_CUDA_SCHEDULE", "")


@functools.cache
def module() -> ModuleType:
    """fastrnn._cuda; the layer checks have made sure that it is there."""
    return importlib.import_module("fastrnn._cuda")


def place_of(x: Tensor) -> tuple[int, int]:
    """Device index and the address of the caller's current stream."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream


@functools.lru_cache(maxsize=1024)
def _plan(cell: str, dtype: torch.dtype, B: int, H: int, D: int, backward: bool, schedule: str, device: int):
    return module().plan(cell, DTYPES[dtype], B, H, D, backward, schedule or _FORCED, device)


def reserve_shape(
    cell: str, T: int, B: int, H: int, P: int, directions: int, noise: Noise | None = None, recompute: bool = False
) -> tuple[int, ...]:
    """As _cells.reserve_shape(), without padding, W x normalised, and the gates if they are recomputed; what belongs to a
    projection comes after the rest, see _cuda_projected.split()."""
    D, T, B, slots, _ = _cells.reserve_shape(cell, T, B, H, P, directions, noise)
    less = CELLS[cell][2] - _slots(cell) + (_kept_gates(cell) if recompute else 0)
    return D, T, B, slots - less, H


def kept_shape(cell: str, item: int, shape: tuple, noise: Noise | None, backprop: Backprop | None) -> tuple[int, ...]:
    """As _cells.kept_shape()."""
    T, B, _, H, P, D = shape
    return reserve_shape(cell, T, B, H, P, D, noise, backprop is not None and backprop.checkpoint_every > 0)


def _slots(cell: str) -> int:
    """Values of a unit that the kernels keep of a step."""
    gates, _, slots, *_ = CELLS[cell]
    return slots - (gates + 1 if cell in NORMALISED else 0)


def _kept_gates(cell: str) -> int:
    return _slots(cell) - (CELLS[cell][1] - 1)


def _recomputes(cell: str, reserve: Tensor) -> bool:
    """Whether forward has left the gates to backward."""
    return reserve.shape[3] < _slots(cell)


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
    """The tensors of a call as the kernels read them, dense: x, states, and the weights of each direction."""
    f, n = function_of(cell), len(weights) // directions
    names, ways = weight_names(directions, n >= 4, bool(n & 1)), []
    for k in range(0, len(weights), n):
        w = [dense(f, name, t) for name, t in zip(names[k : k + n], weights[k : k + n])]
        b_ih, b_hh = w[2:4] if n >= 4 else (None, None)
        ways.append(Direction(w[0], w[1], b_ih, b_hh, w[-1] if n & 1 else None))
    states = [dense(f, name, s) for name, s in zip(STATE_NAMES, (h0, c0)[: CELLS[cell][1]])]
    return dense(f, "x", x), states, ways


def _strides(t: Tensor | None, batch_first: bool) -> tuple[int, int]:
    """Strides over t and b."""
    if t is None:
        return 0, 0
    first, second = t.stride()[:2]
    return (second, first) if batch_first else (first, second)


class Recurrence:
    """The serial part of a layer: calls of the kernels, which know no input and no projection."""

    def __init__(
        self,
        cell: str,
        x: Tensor,
        ways: Sequence[Direction],
        rows: tuple,  # lengths, reset_mask, whether resets return to the initial state
        shape: tuple,
        batch_first: bool,
        schedule: str,
        noise: Noise | None,
        recompute: bool,
    ):
        self.cell, self.x, self.shape, self.batch_first, self.schedule = cell, x, shape, batch_first, schedule
        self.noise = _QUIET if noise is None else noise.for_core()
        self._h_mask = None if noise is None else noise.h_mask  # keeps its memory
        self.recompute = recompute
        lengths, self.reset_mask, self.to_initial = rows
        self.lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
        # A single step sees only h0, which the projected input has taken in: a stepper need not multiply matrices.
        fold = torch.matmul if shape[0] > 1 else lambda w_hh, w_hr: w_hh.new_zeros(len(w_hh), w_hr.shape[1])
        self.weights = [w.w_hh if w.w_hr is None else fold(w.w_hh, w.w_hr) for w in ways]
        self.biases = [w.b_hh for w in ways]

    def rows(self) -> projection.Rows:
        return projection.rows_of(self.lengths, self.reset_mask, self.shape[0], self.batch_first, self.to_initial)

    def _plan(self, backward: bool) -> tuple:
        T, B, I, H, D = self.shape
        device, stream = place_of(self.x)
        plan = _plan(self.cell, self.x.dtype, B, H, D, backward, self.schedule, device)
        if _LOG:
            named = " ".join(f"{k}={v}" for k, v in zip("TBIHD", self.shape))
            what = "backward" if backward else "forward"
            print(f"fastrnn: {self.cell}_{what} {named} cuda -> {plan!r}", file=sys.stderr)
        return plan, device, stream

    def _layer(self, plan, states: Sequence[Tensor | None], y: Tensor, reserve: Tensor | None) -> tuple:
        """The arguments that forward and backward share, and the workspace, which has to outlive the call."""
        T, B, I, H, D = self.shape
        workspace = self.x.new_empty(max(plan.workspace_bytes, 1), dtype=torch.uint8)
        weights = [address_of(t) for pair in zip(self.weights, self.biases) for t in pair]
        layer = module().Layer(
            self.cell, DTYPES[self.x.dtype], T, B, H, D, weights, [address_of(s) for s in states],
            address_of(self.lengths), address_of(self.reset_mask), *_strides(self.reset_mask, self.batch_first),
            self.to_initial, y.data_ptr(), *_strides(y, self.batch_first), address_of(reserve), workspace.data_ptr(),
            self.noise, self.recompute,
        )  # fmt: skip
        return layer, workspace

    def _widths(self, states: Sequence[Tensor | None]) -> list[int]:
        H = self.shape[3]
        return [H, width_beyond(self.cell, H)][: len(states)]

    def forward(
        self,
        gx: Tensor,
        states: Sequence[Tensor | None],
        y: Tensor,
        reserve: Tensor | None,
        first_product: Tensor | None = None,
    ) -> list[Tensor]:
        """Fills y and the reserve from the projected input gx; the last states, h [D, B, H] and those beyond it.
        first_product [D, B, G*H]: what a normalised cell has for R h where a step starts from the initial state, if not
        that."""
        T, B, I, H, D = self.shape
        last = [self.x.new_empty(D, B, width) for width in self._widths(states)]
        if B:
            plan, device, stream = self._plan(False)
            layer, _workspace = self._layer(plan, states, y, reserve)
            strides = _strides(gx, self.batch_first)
            module().rnn_forward(
                layer, plan, device, stream, gx.data_ptr(), *strides, [s.data_ptr() for s in last],
                address_of(first_product),
            )  # fmt: skip
        return last

    def backward(
        self,
        dy: Tensor | None,
        above: Sequence[Tensor | None],
        states: Sequence[Tensor | None],
        y: Tensor,
        reserve: Tensor,
        dcs: Tensor | None,
        gates: Callable[[Tensor, Tensor, Tensor], Tensor | None] | None = None,
        backprop: Backprop | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, list[Tensor]]:
        """Gradients of gx and of its recurrent counterpart [T, B, D*G*H], what each step's product read of h [T, B,
        D*H], the parts of the gradient of the cell's vectors [T, B, D*V*H] (None without; of a normalised cell [B,
        D*V*H], see _cuda_norm.py), and the gradients of the initial states [D, B, H]; above: those of the last states;
        dcs: of c of every step; gates(dgx, dgr, h_prev) fills them with what the kernel recomputes the gates from."""
        T, B, I, H, D = self.shape
        dgx = self.x.new_empty(T, B, D * self.weights[0].shape[0])
        shared = module().CELLS[self.cell]["shared_gate_grad"]
        dgr = dgx if shared else torch.empty_like(dgx)
        vectors = CELLS[self.cell][3]
        wide = torch.float64 if self.x.dtype is torch.float64 else torch.float32
        dvectors = None
        if self.cell in NORMALISED:
            dvectors = self.x.new_zeros(B, D * vectors * H, dtype=wide)
        elif vectors:
            dvectors = self.x.new_empty(T, B, D * vectors * H)
        h_prev = self.x.new_empty(T, B, D * H)
        dstates = [self.x.new_empty(D, B, width) for width in self._widths(states)]
        dinitial = self.x.new_zeros(D, B, CELLS[self.cell][1], H, dtype=wide) if self.to_initial else None
        if B:
            deviations = None if gates is None else gates(dgx, dgr, h_prev)
            f = function_of(self.cell)
            plan, device, stream = self._plan(True)
            layer, _workspace = self._layer(plan, states, y, reserve)
            dy, dcs = (
                d if d is None or (not d.is_neg() and d.stride(-1) == 1) else dense(f, name, d)
                for name, d in (("dy", dy), ("dc", dcs))
            )
            above = [dense(f, name, d) for name, d in zip(("dh", "dc"), above)]
            detach_mask, clip = (None, 0.0) if backprop is None else (backprop.detach_mask, backprop.grad_clip)
            module().rnn_backward(
                layer, plan, device, stream, address_of(dy), *_strides(dy, self.batch_first),
                [address_of(d) for d in above], address_of(dcs), *_strides(dcs, self.batch_first),
                address_of(detach_mask), *_strides(detach_mask, self.batch_first), clip, dgx.data_ptr(),
                0 if shared else dgr.data_ptr(), address_of(dvectors), h_prev.data_ptr(), [d.data_ptr() for d in dstates],
                address_of(dinitial), address_of(deviations),
            )  # fmt: skip
        return dgx, dgr, h_prev, dvectors, dstates


def _refuse(cell: str, P: int, noise: Noise | None, backprop: Backprop | None, reset_to_initial: bool) -> None:
    """Raises where the kernels lack something that was asked for."""
    f = function_of(cell)
    has = module().CELLS[cell]
    if (noise is not None or backprop is not None or reset_to_initial) and not has["special"]:
        raise NotImplementedError(
            f"{f}: zoneout, recurrent_dropout, reset_to='initial', checkpoint_every, grad_clip and detach_mask are not "
            "implemented on cuda, expected none of them"
        )
    if P and noise is not None and noise.h_mask is not None:  # it would come between the two matrices of the product
        raise NotImplementedError(f"{f}: recurrent_dropout with a projection is not implemented on cuda, expected 0")
    if P and backprop is not None and backprop.detach_mask is not None:
        raise NotImplementedError(  # the gradient of W_hh W_hr does not say which part of it stops before W_hr
            f"{f}: detach_mask with a projection is not implemented on cuda, expected None"
        )
    if backprop is not None and backprop.checkpoint_every and has["late_gates"]:
        raise NotImplementedError(f"{f}: checkpoint_every of reset_after=False is not implemented on cuda, expected 0")


@without_autocast
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
    """As _kernels.forward(); `threads` is for CPUs. With checkpoint_every, of any number, the reserve has no gates, and
    backward computes them again."""
    recompute = training and backprop is not None and backprop.checkpoint_every > 0
    x, states, ways = call
    T, B, I, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    _refuse(cell, P, noise, backprop if training else None, reset_to_initial)
    D, before, rows = directions, x.shape[:2], (lengths, reset_mask, reset_to_initial)
    y = x.new_empty(*before, D * (P or H))
    reserve = None
    if training:
        new = x.new_zeros if whole_reserve and lengths is not None else x.new_empty
        reserve = new(reserve_shape(cell, T, B, H, P, D, noise, recompute))
    recurrence = Recurrence(cell, x, ways, rows, (T, B, I, H, D), batch_first, schedule, noise, recompute)
    gx = _cuda_norm.normalised_input(x, ways) if cell in NORMALISED else project_input(x, ways)
    if P:
        last = _cuda_projected.forward(recurrence, gx, states, ways, y, reserve)
    else:
        last = recurrence.forward(gx, states, y, reserve)
    h, c = last[0], last[1] if len(last) > 1 else None
    if _oracle.CHECK:
        args = (x, h0, c0, lengths, reset_mask, weights, directions, batch_first, noise, False, None, reset_to_initial)
        _oracle.check_forward(cell, args, (y, h, c))
    return y, h, c, reserve


@without_autocast
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
    """As _kernels.backward(); `call` is for CPUs; whether the gates are recomputed shows in the reserve."""
    T, B, I, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    x, states, ways = prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    shape, rows = (T, B, I, H, directions), (lengths, reset_mask, reset_to_initial)
    again = _recomputes(cell, reserve)
    recurrence = Recurrence(cell, x, ways, rows, shape, batch_first, schedule, noise, again)
    timed = x.transpose(0, 1) if batch_first else x
    f, above = function_of(cell), [dh, dc][: len(states)]
    y, reserve = dense(f, "y", y), dense(f, "reserve", reserve)
    gates = None
    if again:
        seen = timed, states[0], y.transpose(0, 1) if batch_first else y, recurrence.rows(), ways, noise
        gates = (
            partial(_cuda_norm.project_again, reserve, *seen) if cell in NORMALISED else partial(project_again, *seen)
        )
    if P:
        found = _cuda_projected.backward(
            recurrence, x, y, reserve, dy, above, states, ways, wanted, dcs, backprop, gates
        )
    else:
        dgx, dgr, h_prev, dvectors, dstates = recurrence.backward(dy, above, states, y, reserve, dcs, gates, backprop)
        sums = ()
        if cell in NORMALISED:
            dgx, sums = _cuda_norm.gradients(timed, ways, recurrence.lengths, dgx, dgr, h_prev, dvectors)
        elif any(wanted[3:]):
            late = module().CELLS[cell]["late_gates"] * H
            read = (late, reserve) if late else None
            sums = weight_gradients(timed, ways, recurrence.lengths, dgx, dgr, h_prev, dvectors, read)
        found = [input_gradient(dgx, ways, batch_first) if wanted[0] else None, *dstates, None][:3]
        found += [g for own in sums for g in own if g is not None]
    grads = [g for g, want in zip(found, wanted) if want]
    if _oracle.CHECK:
        inputs = (x, h0, c0, *weights)
        above = (dy, dh, dc) if dcs is None else (dy, dh, dc, dcs)
        _oracle.check_backward(
            cell, inputs, (*rows[:2], directions, batch_first, noise, backprop, reset_to_initial), above, wanted, grads
        )
    return grads


def kept_states(
    cell: str, reserve: Tensor, weights: Sequence[Tensor], lengths: Tensor | None, batch_first: bool, with_gates: bool
) -> tuple[Tensor | None, Tensor | None]:
    """As _kernels.kept_states()."""
    D, T, B, slots, H = reserve.shape
    if len(weights) // D & 1:  # projected
        reserve = _cuda_projected.split(reserve)[0].view(D, T, B, slots - 1, H)
    first = 0 if _recomputes(cell, reserve) else _kept_gates(cell)
    return _kernels.kept_states(cell, reserve, weights, lengths, batch_first, with_gates, first)
