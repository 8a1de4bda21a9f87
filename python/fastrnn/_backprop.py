"""How gradients of a call are computed: recomputation, clipping, where they stop. What forward returns is not affected."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from . import _core


class Backprop(NamedTuple):
    """The options of one module or call; see fastrnn.nn.LSTM."""

    checkpoint_every: int = 0  # steps between the states that forward keeps; 0: it keeps everything
    grad_clip: float = 0.0  # bound of the gradients of W x + b_ih and of R h + b_hh; 0: none
    detach_mask: Tensor | None = None  # as reset_mask, where no gradient crosses from step t to t-1

    def segment_steps(self, cell: str, item: int, T: int, B: int, I: int, H: int, P: int, D: int) -> int:
        """checkpoint_every, rounded up to whole chunks of backward: sums over time stay the same."""
        if not self.checkpoint_every:
            return 0
        chunk = _core.plan(cell, item, T, B, I, H, P, D, True, 1)["chunk_steps"]
        return -(-min(self.checkpoint_every, T) // chunk) * chunk


def backprop_of(
    function: str, checkpoint_every: int, grad_clip: float, detach_mask: Tensor | None = None
) -> Backprop | None:
    """The options asked for, checked; None if there are none. The mask is checked beside x, in rnn_layer()."""
    k = checkpoint_every
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"{function}: checkpoint_every is {k!r}, expected a number of steps, or 0 to keep every step")
    clip = grad_clip
    if isinstance(clip, bool) or not isinstance(clip, (int, float)) or not 0 <= clip < math.inf:
        raise ValueError(f"{function}: grad_clip is {clip!r}, expected a finite number above 0, or 0 for none")
    if not (k or clip or detach_mask is not None):
        return None
    return Backprop(k, float(clip), detach_mask)
