"""The stepper of a stack whose layers have heads (see _heads.py): one Stepper for each head of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._checks import STATE_NAMES, ShapeError, check_shape, dtype_error, type_error
from ._heads import join_units, split_units
from ._stepper import Stepper


class HeadStepper:
    """Runs a stack of layers with heads step by step; see fastrnn._stepper.Stepper, of which this has the interface.

    Args:
        cell, batch_size, framework, zoneout: as in Stepper.
        layers: for each layer, for each of its N heads, (w_ih [G*H/N, I], w_hh [G*H/N, H/N], b_ih, b_hh [G*H/N] or
            None, None).

    Example:
        >>> head = (np.ones((2, 3), "f"), np.ones((2, 2), "f"), None, None, None)
        >>> HeadStepper("rnn_tanh", [[head, head]])(np.ones((1, 3), "f")).shape
        (1, 4)
    """

    def __init__(
        self,
        cell: str,
        layers: Sequence[Sequence[tuple]],
        batch_size: int = 1,
        framework: str = "numpy",
        zoneout: tuple = (0.0, 0.0),
    ):
        self.batch_size, self._num_heads = batch_size, len(layers[0])
        first = layers[0][0][0]
        self._dtype = first.dtype
        if framework == "torch":
            import torch

            self._concatenate, self._cast, self._kind = torch.cat, torch.Tensor.to, torch.Tensor
            self._wide = torch.float64 if first.dtype is torch.float64 else torch.float32
        else:
            self._concatenate, self._cast, self._kind = np.concatenate, np.ndarray.astype, np.ndarray
            self._wide = first.dtype
        self._layers = []
        for layer in layers:
            heads = [tuple(None if w is None else self._cast(w, self._wide) for w in head) for head in layer]
            self._layers.append([Stepper(cell, [head], batch_size, framework, zoneout) for head in heads])

    def __call__(self, x: Any) -> Any:
        """Advances by one step.

        Args:
            x: [B, I], or [I] when B is 1; the dtype of the weights.

        Returns:
            y: [B, H] (or [H]), new memory.

        Raises:
            ShapeError, DTypeError, DeviceError: x does not fit.
        """
        if self._wide != self._dtype:
            x = self._checked("x", x)
        for layer in self._layers:
            x = join_units([step(x) for step in layer], 1, self._concatenate)
        return x if self._wide == self._dtype else self._cast(x, self._dtype)

    def _checked(self, name: str, value: Any) -> Any:
        """A tensor of the weights' dtype, in the dtype of the computation."""
        if not isinstance(value, self._kind):
            raise type_error("stepper", name, value, f"a {self._kind.__module__}.{self._kind.__name__}")
        if value.dtype != self._dtype:
            raise dtype_error("stepper", name, value.dtype, f"{self._dtype} (the dtype of the weights)")
        return self._cast(value, self._wide)

    @property
    def state(self) -> Any:
        """h [L, B, H], or with the states beyond it, (h, c) for an LSTM: a copy; assign to it to continue from elsewhere."""
        found = []
        for layer in self._layers:
            states = [step.state for step in layer]
            pairs = [s if isinstance(s, tuple) else (s,) for s in states]
            found.append([join_units(parts, 1, self._concatenate) for parts in zip(*pairs)])
        joined = [self._cast(self._concatenate(parts, 0), self._dtype) for parts in zip(*found)]
        return tuple(joined) if len(joined) > 1 else joined[0]

    @state.setter
    def state(self, value: Any) -> None:
        before = self.state
        several = isinstance(before, tuple)
        before = before if several else (before,)
        values = tuple(value) if several and isinstance(value, (tuple, list)) else (value,)
        if len(values) != len(before):
            names = ", ".join(STATE_NAMES[: len(before)]).replace("0", "")
            raise ShapeError(f"stepper: state has {len(values)} entries, expected {len(before)}: ({names})")
        checked = []
        for name, v, own in zip(STATE_NAMES, values, before):
            v = self._checked(name, v)
            check_shape("stepper", name, v.shape, "(L, B, H)", own.shape)
            checked.append(split_units(v, self._num_heads))
        for k, layer in enumerate(self._layers):
            for n, step in enumerate(layer):
                own = tuple(parts[n][k : k + 1] for parts in checked)
                step.state = own if several else own[0]

    def reset(self, mask: Any = None) -> None:
        """Sets the state to zero.

        Args:
            mask: bool [B], rows to reset; None for all.

        Raises:
            ShapeError, DTypeError: the mask does not fit.
        """
        for layer in self._layers:
            for step in layer:
                step.reset(mask)
