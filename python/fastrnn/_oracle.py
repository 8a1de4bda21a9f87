"""The reference with the arguments of a kernel: for second derivatives, and for FASTRNN_CHECK=1, which runs it beside every call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from . import _core, reference
from ._backprop import Backprop
from ._cells import CELLS, join_states, sizes, width_beyond
from ._checks import function_of
from ._noise import Noise

CHECK = os.environ.get("FASTRNN_CHECK", "") not in ("", "0")
_CHECK_TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-9,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}  # of 1 + |expected|; a wrong kernel is wrong by far more


def oracle(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    noise: Noise | None = None,
    return_states: bool = False,
    backprop: Backprop | None = None,
    reset_to_initial: bool = False,
) -> tuple[Tensor, ...]:
    """The same layer by reference.layer(): y, h and the states beyond h side by side; with return_states then those of
    every step."""
    if batch_first:
        x = x.transpose(0, 1)
        reset_mask = None if reset_mask is None else reset_mask.t()
    _, B, _, H, P, _ = sizes(cell, x, weights, directions, False)
    states = [x.new_zeros(directions, B, P or H) if h0 is None else h0]
    if CELLS[cell][1] > 1:
        c0 = x.new_zeros(directions, B, width_beyond(cell, H)) if c0 is None else c0
        states += c0.chunk(CELLS[cell][1] - 1, -1)
    detach_mask, clip = (None, 0.0) if backprop is None else (backprop.detach_mask, backprop.grad_clip)
    if detach_mask is not None and batch_first:
        detach_mask = detach_mask.t()
    y, last, *cs = reference.layer(
        cell, x, weights, states, lengths, reset_mask, directions, noise, return_states, detach_mask, clip,
        reset_to="initial" if reset_to_initial else "zero",
    )  # fmt: skip
    y, *cs = (t.transpose(0, 1) if batch_first else t for t in (y, *cs))
    return (y, *last, *cs) if len(last) <= 2 else (y, last[0], join_states(last[1:]), *cs)


def _compare(cell: str, what: str, got: Sequence[Tensor | None], want: Sequence[Tensor]) -> None:
    for i, (g, w) in enumerate(zip((g for g in got if g is not None), want)):
        tolerance = _CHECK_TOLERANCE[g.dtype]
        if not torch.allclose(g.double(), w, rtol=tolerance, atol=tolerance, equal_nan=True):
            worst = (g.double() - w).abs().max().item()
            raise RuntimeError(
                f"{function_of(cell)}: FASTRNN_CHECK: {what} {i} differs from the reference by {worst:.3g}, "
                f"expected at most {tolerance:g} of 1 + |value| (isa {_core.isa()})"
            )


def _double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().double()


def check_forward(cell: str, args: tuple, got: Sequence[Tensor | None]) -> None:
    x, h0, c0, lengths, reset_mask, weights, *options = args
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        weights = [w.double() for w in weights]
        want = oracle(cell, x.double(), _double(h0), _double(c0), lengths, reset_mask, weights, *options)
        _compare(cell, "output", got, want)


def check_backward(*args) -> None:
    # In a thread of its own, because inside an operator autograd is off and cannot be turned on.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_check_backward_here, *args).result()


def _check_backward_here(
    cell: str,
    inputs: Sequence,
    options: tuple,
    douts: Sequence,
    wanted: Sequence[bool],
    got: Sequence[Tensor],
) -> None:
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        inputs = [None if t is None else _double(t).requires_grad_() for t in inputs]
        x, h0, c0, *weights = inputs
        lengths, reset_mask, *options, backprop, to_initial = options
        outs = oracle(cell, x, h0, c0, lengths, reset_mask, weights, *options, len(douts) == 4, backprop, to_initial)
        pairs = [(o, d.double()) for o, d in zip(outs, douts) if d is not None]
        chosen = [t for t, want in zip(inputs, wanted) if want]
        want = torch.autograd.grad([o for o, _ in pairs], chosen, [d for _, d in pairs], materialize_grads=True)
        _compare(cell, "gradient", got, want)
