"""The stepper for tensors that are not on the CPU: each step is one call of the layers with T = 1.

The state stays in the same memory and nothing waits for the device, so a step can be captured in a CUDA graph;
replaying it is how a step becomes cheap, because the launches cost more than the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from ._cells import CELLS, state_sizes
from ._layer_checks import check_like
from ._noise import Rates
from ._stack import Stack, run_batched


class DeviceStepper:
    """Runs a stack of one-directional layers step by step; see fastrnn._stepper.Stepper, of which this has the
    interface.

    Args:
        cell: name of the cell, one of fastrnn.ops.CELLS.
        layers: for each layer (w_ih [G*H, I], w_hh [G*H, H or P], b_ih, b_hh [G*H] or None, w_hr [P, H] or None), all
            of one width.
        batch_size: rows B of every step.
        zoneout: of h and c; a step takes the expectation.
        num_heads: blocks on the diagonal of the recurrent matrix.

    Example:
        >>> step = DeviceStepper("rnn_tanh", [(torch.ones(4, 3), torch.ones(4, 4), None, None, None)])
        >>> step(torch.ones(1, 3)).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        cell: str,
        layers: Sequence[tuple[Tensor | None, ...]],
        batch_size: int = 1,
        zoneout: tuple[float, float] = (0.0, 0.0),
        num_heads: int = 1,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise _checks.type_error("stepper", "batch_size", batch_size, "an int")
        _checks.check_size("stepper", "batch_size", "B", batch_size)
        self.batch_size = batch_size
        w_ih, _, _, _, w_hr = layers[0]
        I, H, P = w_ih.shape[1], w_ih.shape[0] // CELLS[cell][0], 0 if w_hr is None else w_hr.shape[0]
        n = sum(w is not None for w in layers[0])
        rates = Rates(zoneout) if any(zoneout) else None
        sizes = (I, H, P)
        self._stack = Stack("stepper", cell, len(layers), 1, n, sizes, False, 0.0, rates=rates, num_heads=num_heads)
        self._weights = [w.detach().clone() for layer in layers for w in layer if w is not None]
        widths = state_sizes(cell, H, P)
        self._states = tuple(w_ih.detach().new_zeros(len(layers), batch_size, width) for width, _ in widths)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Advances by one step.

        Args:
            x: [B, I], or [I] when B is 1; dtype and device of the weights.

        Returns:
            y: [B, P or H] (or [P or H]), new memory.

        Raises:
            ShapeError, DTypeError, DeviceError: x does not fit.
        """
        check_like("stepper", "x", x, self._weights[0])
        unbatched = x.ndim == 1 and self.batch_size == 1
        shape = (self.batch_size, self._stack.sizes[0])[unbatched:]
        _checks.check_shape("stepper", "x", x.shape, "(I,)" if unbatched else "(B, I)", shape)
        y, last = run_batched(self._stack, x.view(1, *(1,) * unbatched, *shape), self._states, self._weights, False)
        for state, new in zip(self._states, last):
            state.copy_(new)
        return y[0, 0] if unbatched else y[0]

    @property
    def state(self) -> Tensor | tuple[Tensor, ...]:
        """h [L, B, P or H], or with the states beyond it, (h, c [L, B, H]) for an LSTM: a copy; assign to it to continue
        from elsewhere."""
        found = tuple(state.clone() for state in self._states)
        return found if len(found) > 1 else found[0]

    @state.setter
    def state(self, value: Tensor | Sequence[Tensor]) -> None:
        values = tuple(value) if len(self._states) > 1 and isinstance(value, (tuple, list)) else (value,)
        if len(values) != len(self._states):
            names = ", ".join(_checks.STATE_NAMES[: len(self._states)]).replace("0", "")
            _checks.check_count("stepper", "state", len(values), f"{len(self._states)}: ({names})")
        for name, own, new in zip(_checks.STATE_NAMES, self._states, values):
            check_like("stepper", name, new, own)
            symbols = "(L, B, P or H)" if name == "h0" else "(L, B, H)"
            _checks.check_shape("stepper", name, new.shape, symbols, own.shape)
        for own, new in zip(self._states, values):
            own.copy_(new)

    def reset(self, mask: Tensor | None = None) -> None:
        """Sets the state to zero.

        Args:
            mask: bool [B], rows to reset; None for all.

        Raises:
            ShapeError, DTypeError, DeviceError: the mask does not fit.
        """
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise _checks.dtype_error("stepper", "mask", got, "torch.bool")
            if mask.device != self._states[0].device:
                raise _checks.device_error("stepper", "mask", mask.device, self._states[0].device)
            _checks.check_shape("stepper", "mask", mask.shape, "(B,)", (self.batch_size,))
        for state in self._states:
            state.zero_() if mask is None else state.masked_fill_(mask[:, None], 0)
