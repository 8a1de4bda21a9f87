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

import torch
from torch import Tensor

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
    return module().plan(cell, DTYPES[dtype], 1, B, H, D, backward, schedule or _FORCED, device)


def reserve_shape(cell: str, T: int, B: int, H: int, P: int, directions: int) -> tuple[int, ...]:
    """Shape of what forward keeps for backward; with a projection nothing, see _projected_forward()."""
    return (1,) if P else (directions, T, B, CELLS[cell][2], H)


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
    """The tensors of a call as the kernels read them: x, states and weights per direction, dense."""
    states = [_dense(s) for s in (h0, c0)[: CELLS[cell][1]]]
    return _dense(x), states, [_dense(w) for w in weights]


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.resolve_neg().contiguous()


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _layer(
    cell: str,
    prepared: tuple,
    shape: tuple[int, int, int, int],
    rows: tuple[Tensor | None, Tensor | None],
    batch_first: bool,
    y: Tensor,
    reserve: Tensor | None,
    plan,
) -> tuple:
    """The arguments that forward and backward share, and the workspace, which has to outlive the call."""
    x, states, weights = prepared
    n = len(weights) // shape[3]
    recurrent: list[int] = []
    for d in range(shape[3]):
        recurrent += [_address(weights[d * n + 1]), _address(weights[d * n + 3]) if n == 4 else 0]
    lengths, reset_mask = rows
    workspace = x.new_empty(max(plan.workspace_bytes, 1), dtype=torch.uint8)
    mask_t, mask_b = _strides(reset_mask, batch_first)[:2] if reset_mask is not None else (0, 0)
    layer = module().Layer(
        cell, DTYPES[x.dtype], *shape, recurrent, [_address(s) for s in states], _address(lengths), _address(reset_mask),
        mask_t, mask_b, y.data_ptr(), *_strides(y, batch_first)[:2], _address(reserve), workspace.data_ptr(),
    )  # fmt: skip
    return layer, workspace


def _strides(t: Tensor, batch_first: bool) -> tuple[int, ...]:
    """Strides over t, b and the rest."""
    first, second, *rest = t.stride()
    return (second, first, *rest) if batch_first else (first, second, *rest)


def _rows(lengths: Tensor | None, reset_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return None if lengths is None else lengths.to(torch.int64).contiguous(), reset_mask


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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """As _kernels.forward(); `threads` is for CPUs."""
    dense, states, own = call
    T, B, I, H, P, n = sizes(cell, x, weights, directions, batch_first)
    if P:
        found = _projected_forward(cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first)
        return *found, x.new_zeros(1) if training else None
    D, GH = directions, own[0].shape[0]
    y = x.new_empty(B, T, D * H) if batch_first else x.new_empty(T, B, D * H)
    last = [x.new_empty(D, B, H) for _ in states]
    reserve = None
    if training:
        new = x.new_zeros if whole_reserve and lengths is not None else x.new_empty
        reserve = new(reserve_shape(cell, T, B, H, P, D))
    if B:
        gx = x.new_empty(*dense.shape[:2], D * GH)
        for d in range(D):
            w_ih, bias, out = (
                own[d * n],
                own[d * n + 2] if n == 4 else None,
                gx.view(T * B, -1)[:, d * GH : (d + 1) * GH],
            )
            flat = dense.view(T * B, I)
            torch.mm(flat, w_ih.t(), out=out) if bias is None else torch.addmm(bias, flat, w_ih.t(), out=out)
        device, stream = place_of(x)
        plan = _plan(cell, x.dtype, B, H, D, False, schedule, device)
        _log(cell, "forward", (T, B, I, H, D), plan)
        rows = _rows(lengths, reset_mask)
        layer, _workspace = _layer(cell, call, (T, B, H, D), rows, batch_first, y, reserve, plan)
        module().rnn_forward(
            layer, plan, device, stream, gx.data_ptr(), *_strides(gx, batch_first)[:2], [s.data_ptr() for s in last]
        )
    h, c = last[0], last[1] if len(last) > 1 else None
    if _kernels.CHECK:
        _kernels.check_forward(cell, (x, h0, c0, lengths, reset_mask, weights, directions, batch_first), (y, h, c))
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
) -> list[Tensor]:
    """As _kernels.backward(); `call` would keep copies alive from forward on, and is not used."""
    T, B, I, H, P, n = sizes(cell, x, weights, directions, batch_first)
    if P:
        inputs, above = (cell, x, h0, c0, lengths, reset_mask, weights, directions, batch_first), (dy, dh, dc)
        return _projected_backward(inputs, above, wanted)
    call = prepare_any(cell, x, h0, c0, reset_mask, weights, directions, batch_first)
    dense, states, own = call
    D, GH = directions, own[0].shape[0]
    shared = module().CELLS[cell]["shared_gate_grad"]
    # All of these are [T, B, ...], as the long products want them.
    dgx = x.new_empty(T, B, D * GH)
    dgr = dgx if shared else torch.empty_like(dgx)
    h_prev = x.new_empty(T, B, D * H)
    dstates = [x.new_empty(D, B, H) for _ in states]
    if B:
        device, stream = place_of(x)
        plan = _plan(cell, x.dtype, B, H, D, True, schedule, device)
        _log(cell, "backward", (T, B, I, H, D), plan)
        rows, y, reserve = _rows(lengths, reset_mask), _dense(y), _dense(reserve)
        layer, _workspace = _layer(cell, call, (T, B, H, D), rows, batch_first, y, reserve, plan)
        if dy is not None and (dy.is_neg() or dy.stride(-1) != 1):
            dy = _dense(dy)
        above = [_dense(d) for d in (dh, dc)[: len(states)]]
        module().rnn_backward(
            layer, plan, device, stream, _address(dy), *(_strides(dy, batch_first)[:2] if dy is not None else (0, 0)),
            [_address(d) for d in above], dgx.data_ptr(), 0 if shared else dgr.data_ptr(), h_prev.data_ptr(),
            [d.data_ptr() for d in dstates],
        )  # fmt: skip
    found = [_input_gradient(dgx, own, n, batch_first, x) if wanted[0] else None, *dstates, None][:3]
    if any(wanted[3:]):
        found += _weight_gradients(cell, dense, lengths, reserve, dgx, dgr, h_prev, batch_first, D, n)
    grads = [g for g, want in zip(found, wanted) if want]
    if _kernels.CHECK:
        inputs = (x, h0, c0, *weights)
        _kernels.check_backward(
            cell, inputs, (lengths, reset_mask, directions, batch_first), (dy, dh, dc), wanted, grads
        )
    return grads


# A projected LSTM has no kernel yet. It runs as the reference does, one torch operation after another, in the dtype of
# its tensors; backward computes forward again.


def _projected_forward(*inputs) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.autocast(inputs[1].device.type, enabled=False):
        return tuple(o.clone() for o in _kernels.oracle(*inputs))  # the last states may be views of y


def _projected_backward(inputs: tuple, above: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor]:
    cell, x, h0, c0, lengths, reset_mask, weights, *options = inputs
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, h0, c0, *weights)]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        out = _kernels.oracle(cell, *leaves[:3], lengths, reset_mask, leaves[3:], *options)
    pairs = [(o, d) for o, d in zip(out, above) if d is not None]
    chosen = [t for t, want in zip(leaves, wanted) if want]
    return list(torch.autograd.grad([o for o, _ in pairs], chosen, [d for _, d in pairs], materialize_grads=True))


def _input_gradient(dgx: Tensor, weights: Sequence[Tensor], n: int, batch_first: bool, x: Tensor) -> Tensor:
    T, B, width = dgx.shape
    w_ih = weights[0] if len(weights) == n else torch.cat((weights[0], weights[n]))
    dx = (dgx.view(T * B, width) @ w_ih).view(T, B, -1)
    return dx.transpose(0, 1).contiguous() if batch_first else dx


def _weight_gradients(
    cell: str,
    x: Tensor,
    lengths: Tensor | None,
    reserve: Tensor,
    dgx: Tensor,
    dgr: Tensor,
    h_prev: Tensor,
    batch_first: bool,
    D: int,
    n: int,
) -> list[Tensor]:
    """Gradients of w_ih, w_hh, b_ih, b_hh of each direction: sums over all steps and rows."""
    T, B, width = dgx.shape
    H, GH = h_prev.shape[2] // D, width // D
    if batch_first:
        x = x.transpose(0, 1)
    if lengths is not None:  # padding may hold anything, also NaN, which a gradient of zero would not hide
        x = x.masked_fill((torch.arange(T, device=x.device)[:, None] >= lengths[None, :]).unsqueeze(-1), 0)
    x = x.reshape(T * B, -1)
    late = module().CELLS[cell]["late_gates"] * H
    grads: list[Tensor] = []
    for d in range(D):
        own = slice(d * GH, (d + 1) * GH)
        to_x, to_h = dgx.view(T * B, width)[:, own].t(), dgr.view(T * B, width)[:, own].t()
        grads.append(to_x @ x)
        h = h_prev.view(T * B, D * H)[:, d * H : (d + 1) * H]
        if late:  # the late gates multiplied something else than h: the last slot of the reserve
            u = reserve[d].view(T * B, -1, H)[:, -1]
            grads.append(torch.cat((to_h[: GH - late] @ h, to_h[GH - late :] @ u)))
        else:
            grads.append(to_h @ h)
        if n == 4:
            grads += [to_x.sum(1), to_h.sum(1)]
    return grads


def _log(cell: str, what: str, shape: tuple[int, ...], plan) -> None:
    if _LOG:
        named = " ".join(f"{k}={v}" for k, v in zip("TBIHD", shape))
        print(f"fastrnn: {cell}_{what} {named} cuda -> {plan!r}", file=sys.stderr)
