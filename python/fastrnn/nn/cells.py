"""LSTMCell, GRUCell and RNNCell: one time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .. import _checks
from .._stack import Stack, as_single, as_states, each, run_batched
from ..ops import try_step
from ._options import check_nonlinearity, check_options, initialise, make_stepper


class _Cell(Module):
    """What the one-step modules share: parameters weight_ih, weight_hh, bias_ih, bias_hh."""

    _function: str
    _gates: int

    def __init__(self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        check_options(type(self).__name__, 1, 0.0, 0, input_size=input_size, hidden_size=hidden_size, bias=bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        shapes = _checks.weight_shapes(self._gates, input_size, hidden_size, 0, 1, True)
        for name, shape in zip(_checks.weight_names(1, True, False), shapes):
            absent = name.startswith("bias") and not bias
            weight = None if absent else Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter uniformly in +-1/sqrt(hidden_size)."""
        initialise(self, self.hidden_size)

    def _cell(self) -> str:
        raise NotImplementedError

    def _weights(self) -> list[Tensor]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        try:
            own = self._parameters
            weights = [own[name] for name in names]
        except KeyError:  # parametrized, or replaced by a plain tensor
            weights = [getattr(self, name) for name in names]
        return weights if weights[2] is not None else weights[:2]

    def _step(self, x: Tensor, states: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """One step of [B, I] or [I] from states [B, H] or [H]."""
        weights, sizes = self._weights(), (self.input_size, self.hidden_size, 0)
        if not torch.is_autocast_enabled("cpu"):
            last = try_step(self._cell(), x, weights, states, sizes)
            if last is not None:
                return last
        batch = self._check_shapes(x, states)
        if not batch:
            x, states = x.unsqueeze(0), each(lambda s: s.unsqueeze(0), states)
        states = each(lambda s: s.unsqueeze(0), states)
        stack = Stack(self._function, self._cell(), 1, 1, len(weights), sizes, False, 0.0, "")
        _, last = run_batched(stack, x.unsqueeze(0), states, weights, False)
        return tuple(s.squeeze(0) if batch else s.squeeze(0).squeeze(0) for s in last)

    def _check_shapes(self, x: Tensor, states: tuple[Tensor, ...] | None) -> list[int]:
        """Raises in terms of what the caller gave; returns [B], or [] if there is no batch."""
        f, I, H = self._function, self.input_size, self.hidden_size
        if not isinstance(x, Tensor):
            raise _checks.type_error(f, "x", x, "a torch.Tensor")
        if x.ndim not in (1, 2):
            raise _checks.ShapeError(f"{f}: x has shape {tuple(x.shape)}, expected 2 sizes (B, I) or 1 size (I,)")
        *batch, width = x.shape
        if width != I:
            raise _checks.shape_error(f, "x", x.shape, "(B, I)" if batch else "(I,)", (*batch, I))
        for name, s in zip(_checks.STATE_NAMES, states or ()):
            if s is None:
                continue
            if not isinstance(s, Tensor):
                raise _checks.type_error(f, name, s, "a torch.Tensor")
            if s.shape != (*batch, H):
                raise _checks.shape_error(f, name, s.shape, "(B, H)" if batch else "(H,)", (*batch, H))
        return batch

    def stepper(self, batch_size: int = 1) -> Any:
        """A stepper with this cell's weights, copied now; see LSTM.stepper()."""
        weights = [None if w is None else w.detach() for w in (*self._weights(), None, None)]
        return make_stepper(self._cell(), [(*weights[:4], None)], batch_size)

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as torch prints them."""
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"bias": True, "reset_after": True, "nonlinearity": "tanh", "coupled": False}
        defaults["recurrent_activation"] = "sigmoid"
        shown += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k, v) != v]
        return ", ".join(shown)


class LSTMCell(_Cell):
    """Drop-in for torch.nn.LSTMCell: one time step, (h, c) = cell(x, (h, c)).

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.LSTMCell.
        coupled, recurrent_activation: as in LSTM.

    Raises:
        ValueError, TypeError: an option that no cell has.

    Example:
        >>> h, c = LSTMCell(3, 4)(torch.ones(2, 3))
    """

    _function, _gates = "lstm_cell", 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        coupled: bool = False,
        recurrent_activation: str = "sigmoid",
    ):
        _checks.lstm_cell("LSTMCell", coupled, False, recurrent_activation)
        self._gates = 3 if coupled else 4
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.coupled, self.recurrent_activation = bool(coupled), recurrent_activation

    def _cell(self) -> str:
        return _checks.lstm_cell("LSTMCell", self.coupled, False, self.recurrent_activation)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            input: [B, I] or [I], in the dtype of the weights.
            hx: (h, c), each [B, H], or [H] if input has no B; None for zeros.

        Returns:
            (h, c) after the step, shaped like hx.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        h, c = self._step(input, as_states("lstm_cell", hx))
        return h, c


class GRUCell(_Cell):
    """Drop-in for torch.nn.GRUCell: one time step, h = cell(x, h).

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.GRUCell.
        reset_after, recurrent_activation: as in GRU.

    Raises:
        ValueError, TypeError: an option that no cell has.

    Example:
        >>> h = GRUCell(3, 4)(torch.ones(2, 3))
    """

    _function, _gates = "gru_cell", 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
        recurrent_activation: str = "sigmoid",
    ):
        _checks.gru_cell("GRUCell", reset_after, recurrent_activation)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after, self.recurrent_activation = bool(reset_after), recurrent_activation

    def _cell(self) -> str:
        return _checks.gru_cell("GRUCell", self.reset_after, self.recurrent_activation)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            input: [B, I] or [I], in the dtype of the weights.
            hx: h [B, H], or [H] if input has no B; None for zeros.

        Returns:
            h after the step, shaped like hx.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        return self._step(input, as_single("gru_cell", hx))[0]


class RNNCell(_Cell):
    """Drop-in for torch.nn.RNNCell, with the sigmoid as a third nonlinearity: one time step, h = cell(x, h).

    Args:
        input_size, hidden_size, bias, device, dtype: as in torch.nn.RNNCell.
        nonlinearity: "tanh", "relu" or "sigmoid".

    Raises:
        ValueError, TypeError: an option that no cell has.

    Example:
        >>> h = RNNCell(3, 4, nonlinearity="relu")(torch.ones(2, 3))
    """

    _function, _gates = "rnn_cell", 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ):
        check_nonlinearity("RNNCell", nonlinearity)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            input: [B, I] or [I], in the dtype of the weights.
            hx: h [B, H], or [H] if input has no B; None for zeros.

        Returns:
            h after the step, shaped like hx.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        return self._step(input, as_single("rnn_cell", hx))[0]
