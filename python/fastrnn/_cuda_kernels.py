"""The CUDA kernels seen from torch, with the interface of _kernels.py.

A layer is three parts: the input projection, one long product, by torch (cuBLAS); the recurrence, one call of `_cuda`; and
after backward's recurrence the long products that give the gradients of weights and input, by torch again. Float32
products follow torch.backends.cuda.matmul.allow_tf32, which is off unless the user turns it on; the recurrence is always
float32. Work goes to the caller's current stream. Nothing synchronises: values in `lengths` are clamped by the kernel.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cuda_projection as projection
from . import _kernels
from ._kernels import CELLS, sizes

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_LOG = os.environ.get("FASTRNN_LOG") == "1"
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


def reserve_shape(cell: str, T: int, B: int, H: int, P: int, directions: int) -> tuple[int, ...]:
    """Shape of what forward keeps for backward: the cell's slots and, with a projection, h before it. See _split()."""
    return directions, T, B, CELLS[cell][2] + (P > 0), H


def _split(reserve: Tensor) -> tuple[Tensor, Tensor]:
    """Of a projected layer's reserve: what the kernel keeps, and h before the projection [T*B, D*H] after it."""
    D, T, B, slots, H = reserve.shape
    kept, m = reserve.view(-1).split((D * T * B * (slots - 1) * H, D * T * B * H))
    return kept, m.view(T * B, D * H)


class _Direction(NamedTuple):
    """The weights of one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


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
    n = len(weights) // directions
    ways = []
    for k in range(0, len(weights), n):
        w = [_dense(t) for t in weights[k : k + n]]
        b_ih, b_hh = w[2:4] if n >= 4 else (None, None)
        ways.append(_Direction(w[0], w[1], b_ih, b_hh, w[-1] if n & 1 else None))
    return _dense(x), [_dense(s) for s in (h0, c0)[: CELLS[cell][1]]], ways


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.resolve_neg().contiguous()


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _strides(t: Tensor | None, batch_first: bool) -> tuple[int, int]:
    """Strides over t and b."""
    if t is None:
        return 0, 0
    first, second = t.stride()[:2]
    return (second, first) if batch_first else (first, second)


def _by_direction(t: Tensor | None, D: int, batch_first: bool) -> Sequence[Tensor | None]:
    """Views [T, B, ...] of the columns of each direction."""
    return [None] * D if t is None else (t.transpose(0, 1) if batch_first else t).chunk(D, dim=-1)


class _Recurrence:
    """The serial part of a layer: calls of the kernels, which know no input and no projection."""

    def __init__(self, cell: str, x: Tensor, ways, rows, shape: tuple, batch_first: bool, schedule: str):
        self.cell, self.x, self.shape, self.batch_first, self.schedule = cell, x, shape, batch_first, schedule
        lengths, self.reset_mask = rows
        self.lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
        # A single step sees only h0, which the projected input has taken in: a stepper need not multiply matrices.
        fold = torch.matmul if shape[0] > 1 else lambda w_hh, w_hr: w_hh.new_zeros(len(w_hh), w_hr.shape[1])
        self.weights = [w.w_hh if w.w_hr is None else fold(w.w_hh, w.w_hr) for w in ways]
        self.biases = [w.b_hh for w in ways]

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
        weights = [_address(t) for pair in zip(self.weights, self.biases) for t in pair]
        layer = module().Layer(
            self.cell, DTYPES[self.x.dtype], T, B, H, D, weights, [_address(s) for s in states],
            _address(self.lengths), _address(self.reset_mask), *_strides(self.reset_mask, self.batch_first),
            y.data_ptr(), *_strides(y, self.batch_first), _address(reserve), workspace.data_ptr(),
        )  # fmt: skip
        return layer, workspace

    def forward(self, gx: Tensor, states: Sequence[Tensor | None], y: Tensor, reserve: Tensor | None) -> list[Tensor]:
        """Fills y and the reserve from the projected input gx; the last states [D, B, H]."""
        T, B, I, H, D = self.shape
        last = [self.x.new_empty(D, B, H) for _ in states]
        if B:
            plan, device, stream = self._plan(False)
            layer, _workspace = self._layer(plan, states, y, reserve)
            strides = _strides(gx, self.batch_first)
            module().rnn_forward(layer, plan, device, stream, gx.data_ptr(), *strides, [s.data_ptr() for s in last])
        return last

    def backward(
        self,
        dy: Tensor | None,
        above: Sequence[Tensor | None],
        states: Sequence[Tensor | None],
        y: Tensor,
        reserve: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, list[Tensor]]:
        """Gradients of gx and of its recurrent counterpart [T, B, D*G*H], h before each step [T, B, D*H], the parts of
        the gradient of the cell's vectors [T, B, D*V*H] (None without), and the gradients of the initial states
        [D, B, H]; above: those of the last states."""
        T, B, I, H, D = self.shape
        dgx = self.x.new_empty(T, B, D * self.weights[0].shape[0])
        shared = module().CELLS[self.cell]["shared_gate_grad"]
        dgr = dgx if shared else torch.empty_like(dgx)
        vectors = CELLS[self.cell][3]
        dvectors = self.x.new_empty(T, B, D * vectors * H) if vectors else None
        h_prev = self.x.new_empty(T, B, D * H)
        dstates = [self.x.new_empty(D, B, H) for _ in states]
        if B:
            plan, device, stream = self._plan(True)
            layer, _workspace = self._layer(plan, states, y, reserve)
            if dy is not None and (dy.is_neg() or dy.stride(-1) != 1):
                dy = _dense(dy)
            above = [_dense(d) for d in above]
            module().rnn_backward(
                layer, plan, device, stream, _address(dy), *_strides(dy, self.batch_first),
                [_address(d) for d in above], dgx.data_ptr(), 0 if shared else dgr.data_ptr(), _address(dvectors),
                h_prev.data_ptr(),
                [d.data_ptr() for d in dstates],
            )  # fmt: skip
        return dgx, dgr, h_prev, dvectors, dstates


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
    noise: None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """As _kernels.forward(); `threads` is for CPUs, and so is noise, which ops.rnn_layer() refuses here."""
    if cell not in module().CELLS:
        raise NotImplementedError(
            f"{_kernels.function_of(cell)}: layer_norm has no CUDA kernels, expected tensors on cpu"
        )
    dense, states, ways = call
    T, B, I, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    D, before, rows = directions, x.shape[:2], (lengths, reset_mask)
    y = x.new_empty(*before, D * (P or H))
    reserve = None
    if training:
        new = x.new_zeros if whole_reserve and lengths is not None else x.new_empty
        reserve = new(reserve_shape(cell, T, B, H, P, D))
    recurrence = _Recurrence(cell, x, ways, rows, (T, B, I, H, D), batch_first, schedule)
    gx = _project_input(dense, ways)
    if P:
        last = _projected_forward(recurrence, gx, states, ways, y, reserve)
    else:
        last = recurrence.forward(gx, states, y, reserve)
    h, c = last[0], last[1] if len(last) > 1 else None
    if _kernels.CHECK:
        _kernels.check_forward(cell, (x, h0, c0, lengths, reset_mask, weights, directions, batch_first), (y, h, c))
    return y, h, c, reserve


def _projected_forward(
    recurrence: _Recurrence,
    gx: Tensor,
    states: Sequence[Tensor | None],
    ways: Sequence[_Direction],
    y: Tensor,
    reserve: Tensor | None,
) -> list[Tensor]:
    """Fills y and the reserve; the last states h [D, B, P] and c [D, B, H]."""
    T, B, _, H, D = recurrence.shape
    kept, m = (None, y.new_empty(T * B, D * H)) if reserve is None else _split(reserve)
    rows = projection.rows_of(recurrence.lengths, recurrence.reset_mask, T, recurrence.batch_first)
    h0 = [None] * D if states[0] is None else states[0]
    for d, own in enumerate(_by_direction(gx, D, recurrence.batch_first)):
        projection.add_initial(own, h0[d], ways[d].w_hh, rows, d)
    last = recurrence.forward(gx, [None, states[1]], m.view(*y.shape[:2], D * H), kept)
    for way, own_m, own_y in zip(ways, m.chunk(D, dim=1), y.flatten(0, 1).chunk(D, dim=1)):
        torch.mm(own_m, way.w_hr.t(), out=own_y)
    own = _by_direction(y, D, recurrence.batch_first)
    last[0] = torch.stack([projection.last_of(own[d], h0[d], rows, d) for d in range(D)])
    return last


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
    noise: None = None,
    dcs: None = None,
) -> list[Tensor]:
    """As _kernels.backward(); `call`, `noise` and `dcs` are for CPUs."""
    T, B, I, H, P, _ = sizes(cell, x, weights, directions, batch_first)
    dense, states, ways = prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    recurrence = _Recurrence(cell, x, ways, (lengths, reset_mask), (T, B, I, H, directions), batch_first, schedule)
    above, y, reserve = [dh, dc][: len(states)], _dense(y), _dense(reserve)
    if P:
        found = _projected_backward(recurrence, dense, y, reserve, dy, above, states, ways, wanted)
    else:
        dgx, dgr, h_prev, dvectors, dstates = recurrence.backward(dy, above, states, y, reserve)
        found = [_input_gradient(dgx, ways, batch_first) if wanted[0] else None, *dstates, None][:3]
        if any(wanted[3:]):
            late = reserve if module().CELLS[cell]["late_gates"] else None
            for own in _weight_gradients(recurrence, dense, dgx, dgr, h_prev, dvectors, late):
                found += [g for g in own if g is not None]
    grads = [g for g, want in zip(found, wanted) if want]
    if _kernels.CHECK:
        inputs = (x, h0, c0, *weights)
        _kernels.check_backward(
            cell, inputs, (lengths, reset_mask, directions, batch_first), (dy, dh, dc), wanted, grads
        )
    return grads


def _projected_backward(
    recurrence: _Recurrence,
    x: Tensor,
    y: Tensor,
    reserve: Tensor,
    dy: Tensor | None,
    above: Sequence[Tensor | None],
    states: Sequence[Tensor | None],
    ways: Sequence[_Direction],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """All gradients of a layer with projection; the formulas are in _cuda_projection.py."""
    (T, _, _, H, D), batch_first = recurrence.shape, recurrence.batch_first
    rows = projection.rows_of(recurrence.lengths, recurrence.reset_mask, T, batch_first)
    kept, m = _split(reserve)
    m = m.view(*y.shape[:2], D * H)
    h0, dh = ([None] * D if t is None else t for t in (states[0], above[0]))
    own_y, own_dy = (_by_direction(t, D, batch_first) for t in (y, dy))
    dys = [projection.gradient_of_y(own_dy[d], dh[d], own_y[d], rows, d) for d in range(D)]
    dm = torch.cat([g @ way.w_hr for g, way in zip(dys, ways)], dim=-1)
    dm = dm.transpose(0, 1) if batch_first else dm
    dgx, dgr, m_prev, dvectors, (_, dc0) = recurrence.backward(dm, [None, above[1]], [None, states[1]], m, kept)
    firsts = [projection.gradient_at_first(g, rows, d) for d, g in enumerate(dgx.chunk(D, dim=-1))]
    dh0 = [projection.gradient_of_h0(firsts[d], ways[d].w_hh, dh[d], rows, T) for d in range(D)]
    found = [_input_gradient(dgx, ways, batch_first) if wanted[0] else None, torch.stack(dh0), dc0]
    if any(wanted[3:]):
        own_m = _by_direction(m, D, batch_first)
        sums = _weight_gradients(recurrence, x, dgx, dgr, m_prev, dvectors, None)
        for d, (dw_ih, dR, *dbiases) in enumerate(sums):
            own = dys[d], own_m[d], firsts[d], h0[d], ways[d].w_hh, ways[d].w_hr
            dw_hh, dw_hr = projection.weight_gradients(dR, *own)
            found += [dw_ih, dw_hh, *(g for g in dbiases if g is not None), dw_hr]
    return found


def _project_input(x: Tensor, ways: Sequence[_Direction]) -> Tensor:
    """W_ih x + b_ih of all directions, with the first two dimensions of x."""
    GH = ways[0].w_ih.shape[0]
    gx = x.new_empty(*x.shape[:2], len(ways) * GH)
    for way, out in zip(ways, gx.flatten(0, 1).chunk(len(ways), dim=1)):
        flat, w = x.flatten(0, 1), way.w_ih.t()
        torch.mm(flat, w, out=out) if way.b_ih is None else torch.addmm(way.b_ih, flat, w, out=out)
    return gx


def _input_gradient(dgx: Tensor, ways: Sequence[_Direction], batch_first: bool) -> Tensor:
    w_ih = ways[0].w_ih if len(ways) == 1 else torch.cat([way.w_ih for way in ways])
    dx = (dgx.flatten(0, 1) @ w_ih).unflatten(0, dgx.shape[:2])
    return dx.transpose(0, 1).contiguous() if batch_first else dx


def _weight_gradients(
    recurrence: _Recurrence,
    x: Tensor,
    dgx: Tensor,
    dgr: Tensor,
    h_prev: Tensor,
    dvectors: Tensor | None,
    reserve: Tensor | None,
) -> list[tuple[Tensor | None, ...]]:
    """For each direction the gradients of w_ih, the recurrent weights, b_ih, b_hh: sums over all steps and rows.

    reserve: of a cell whose late gates multiplied something else than h; its last slot has it.
    """
    T, _, _, H, D = recurrence.shape
    if recurrence.batch_first:
        x = x.transpose(0, 1)
    if recurrence.lengths is not None:  # padding may hold anything, also NaN, which a gradient of zero would not hide
        beyond = torch.arange(T, device=x.device)[:, None] >= recurrence.lengths
        x = x.masked_fill(beyond.unsqueeze(-1), 0)
    x = x.flatten(0, 1)
    grads = []
    for d in range(D):
        to_x, to_h, h = (t.flatten(0, 1).chunk(D, dim=1)[d] for t in (dgx, dgr, h_prev))
        to_x, to_h = to_x.t(), to_h.t()
        if not CELLS[recurrence.cell][4]:
            dw_hh = to_h.new_empty(len(to_h), 0)
        elif reserve is None:
            dw_hh = to_h @ h
        else:
            early = to_h.shape[0] - module().CELLS[recurrence.cell]["late_gates"] * H
            u = reserve[d, :, :, -1].flatten(0, 1)
            dw_hh = torch.cat((to_h[:early] @ h, to_h[early:] @ u))
        db_ih = db_hh = None
        if recurrence.biases[d] is not None:
            db_ih, db_hh = to_x.sum(1), to_h.sum(1)
            if dvectors is not None:
                db_hh = torch.cat((db_hh, dvectors.chunk(D, dim=2)[d].sum((0, 1))))
        grads.append((to_x @ x, dw_hh, db_ih, db_hh))
    return grads
