"""What the layer of a cell is made of: gates, states, and the sizes of what a call needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _core, reference
from ._backprop import Backprop
from ._noise import Noise

LANES = 16  # the reserve pads H to whole vectors of this many units, for every instruction set and dtype
# name -> gates, states (h, and those beyond it), reserve slots, vectors, product
CELLS: dict[str, tuple[int, ...]] = {
    n: (c["gates"], c["states"], c["reserve"], c["vectors"], c["product"]) for n, c in _core.CELLS.items()
}
WITH_CANDIDATE = frozenset(name for name, c in _core.CELLS.items() if c["drops_candidate"])
NORMALISED = frozenset(name for name in CELLS if reference.CELLS[name] in reference.NORMALISED)


def sizes(cell: str, x: Tensor, weights: Sequence[Tensor], directions: int, batch_first: bool):
    """T, B, I, H, P and the number of weights per direction. The only place that derives them."""
    T, B, I = x.shape
    if batch_first:
        T, B = B, T
    n = len(weights) // directions
    H = weights[0].shape[0] // CELLS[cell][0]
    return T, B, I, H, weights[n - 1].shape[0] if n & 1 else 0, n


def width_beyond(cell: str, H: int) -> int:
    """Columns of the states beyond h, side by side as the kernels take them: `c` everywhere below ops.rnn_layer()."""
    return (CELLS[cell][1] - 1) * H


def state_sizes(cell: str, H: int, P: int) -> list[tuple[int, str]]:
    """Width of each state of a cell, and its symbol."""
    return [(P or H, "P" if P else "H"), *[(H, "H")] * (CELLS[cell][1] - 1)]


def join_states(states: Sequence[Tensor | None]) -> Tensor | None:
    """The states beyond h side by side, [..., (S-1)*H]; zeros for one that is None, None if all are."""
    given = next((s for s in states if s is not None), None)
    if given is None or len(states) == 1:
        return given
    return torch.cat([torch.zeros_like(given) if s is None else s for s in states], -1)


def split_states(cell: str, h: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
    """All states of a cell from h and what join_states() makes of the others."""
    S = CELLS[cell][1]
    if S <= 2:
        return (h,) if S == 1 else (h, c)
    return h, *(s.clone(memory_format=torch.contiguous_format) for s in c.chunk(S - 1, -1))


def reserve_shape(
    cell: str, T: int, B: int, H: int, P: int, directions: int, noise: Noise | None = None
) -> tuple[int, ...]:
    """Shape of what forward keeps for backward: the cell's slots and, with a projection, h before it, and, with zoneout
    of c, c before it."""
    zoned = CELLS[cell][1] - 1 if noise is not None and noise.zoneout[1] else 0
    return directions, T, B, CELLS[cell][2] + (P > 0) + zoned, (H + LANES - 1) // LANES * LANES


def checkpoints_shape(cell: str, T: int, B: int, H: int, directions: int, segment_steps: int) -> tuple[int, ...]:
    """Shape of what forward keeps instead of that: c where a segment begins."""
    return directions, (T - 1) // segment_steps, B, CELLS[cell][1] - 1, (H + LANES - 1) // LANES * LANES


def kept_shape(cell: str, item: int, shape: tuple, noise: Noise | None, backprop: Backprop | None) -> tuple[int, ...]:
    """Shape of what forward keeps, elements of `item` bytes: the reserve, or checkpoints. shape: T, B, I, H, P, D."""
    T, B, _, H, P, D = shape
    if backprop is None or not backprop.checkpoint_every:
        return reserve_shape(cell, T, B, H, P, D, noise)
    return checkpoints_shape(cell, T, B, H, D, backprop.segment_steps(cell, item, *shape))
