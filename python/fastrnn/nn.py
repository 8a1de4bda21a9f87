"""Recurrent modules with the arguments, parameter names, initialisation and state_dict of torch.nn's.

They hold parameters and call fastrnn.functional, nothing else. They do not derive from torch.nn.RNNBase: code that
asks isinstance(m, torch.nn.GRU) does so to reach torch's own equations or kernels (exporters, quantisers), which would
be wrong without a word for reset_after=False, lengths or reset_mask; and RNNBase keeps a second list of the weights
that goes stale when a weight is replaced. Here weights are read by name at each call, so that functional_call,
parametrizations, load_state_dict(assign=True) and `.data =` are all seen.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.rnn import PackedSequence

from . import _checks
from .functional import Stack, _pair, _single, run, run_batched

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

NONLINEARITIES = ("tanh", "relu", "sigmoid")


def _check_options(name: str, num_layers: int, dropout: float, proj_size: int, **options: Any) -> None:
    """The checks of torch.nn.RNNBase, in this package's words."""
    for key in ("input_size", "hidden_size"):
        size = options.pop(key)
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: {key} is a {type(size).__name__}, expected an int")
        if size <= 0:
            raise ValueError(f"{name}: {key} is {size}, expected at least 1")
        if key == "hidden_size" and not 0 <= proj_size < size:
            raise ValueError(f"{name}: proj_size is {proj_size}, expected at least 0 and below hidden_size = {size}")
    for key, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: {key} is a {type(value).__name__}, expected a bool")
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise TypeError(f"{name}: num_layers is a {type(num_layers).__name__}, expected an int")
    if num_layers <= 0:
        raise ValueError(f"{name}: num_layers is {num_layers}, expected at least 1")
    if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(f"{name}: dropout is {dropout!r}, expected a probability in [0, 1]")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"{name}: dropout = {dropout} acts between layers, so it does nothing with num_layers = 1", stacklevel=4
        )


def _initialise(module: Module, hidden_size: int) -> None:
    """torch's default: uniform in +-1/sqrt(H), parameter by parameter, so that one seed gives the same weights."""
    bound = 1 / math.sqrt(hidden_size)
    for weight in module.parameters():
        torch.nn.init.uniform_(weight, -bound, bound)


class _Recurrent(Module):
    """What LSTM, GRU and RNN share; see LSTM for the arguments."""

    _function: str
    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        _check_options(
            type(self).__name__, num_layers, dropout, proj_size, input_size=input_size, hidden_size=hidden_size,
            bias=bias, batch_first=batch_first, bidirectional=bidirectional,
        )  # fmt: skip
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        directions = 2 if bidirectional else 1
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            width = directions * (proj_size or hidden_size) if layer else input_size
            names = _checks.weight_names(directions, bias, proj_size > 0, f"_l{layer}")
            shapes = _checks.weight_shapes(self._gates, width, hidden_size, proj_size, directions, bias)
            for name, shape in zip(names, shapes):
                self.register_parameter(name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
            n = len(names) // directions
            self._all_weights += [names[d * n : (d + 1) * n] for d in range(directions)]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter uniformly in +-1/sqrt(hidden_size)."""
        _initialise(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels need no particular placement. Kept because code written for torch calls it."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, in torch's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self) -> list[Tensor]:
        """All weights in the order that fastrnn.functional takes."""
        own = self._parameters
        try:
            return [own[name] for name in self._flat_weights_names]
        except KeyError:  # parametrized, or replaced by a plain tensor
            return [getattr(self, name) for name in self._flat_weights_names]

    @property
    def mode(self) -> str:
        """torch's name of the kind of network: LSTM, GRU, RNN_TANH, ..."""
        return self._function.upper() if self._function != "rnn" else self._cell().upper()

    def _cell(self) -> str:
        raise NotImplementedError

    def _stack(self) -> Stack:
        directions = 2 if self.bidirectional else 1
        return Stack(
            self._function,
            self._cell(),
            self.num_layers,
            directions,
            len(self._all_weights[0]),
            (self.input_size, self.hidden_size, self.proj_size),
            self.batch_first,
            self.dropout,
        )

    def stepper(self, batch_size: int = 1) -> Any:
        """A stepper with this module's weights, copied now: one time step per call, state kept inside.

        Args:
            batch_size: rows B of each step.

        Returns:
            fastrnn._stepper.Stepper: step(x [B, I]) -> y [B, P or H].

        Raises:
            ValueError: the module is bidirectional.

        Example:
            >>> step = LSTM(3, 4).stepper()
            >>> y = step(torch.ones(1, 3))
        """
        if self.bidirectional:
            raise ValueError(f"{self._function}: stepper() needs one direction, expected bidirectional=False")
        from ._stepper import Stepper

        weights = [w.detach() for w in self._flat_weights]
        n = len(weights) // self.num_layers
        layers = []
        for k in range(0, len(weights), n):
            w = weights[k : k + n]
            biases = w[2:4] if n >= 4 else (None, None)
            layers.append((w[0], w[1], *biases, w[-1] if n & 1 else None))
        return Stepper(self._cell(), layers, batch_size, framework="torch")

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as torch prints them."""
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
            "reset_after": True, "nonlinearity": "tanh",
        }  # fmt: skip
        shown += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k, v) != v]
        return ", ".join(shown)


class LSTM(_Recurrent):
    """Drop-in for torch.nn.LSTM, with ragged batches and resets.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            torch.nn.LSTM; the parameters have torch's names and default initialisation.

    Example:
        >>> y, (h, c) = LSTM(3, 4, bidirectional=True)(torch.ones(5, 2, 3))
    """

    _function, _gates = "lstm", 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    def _cell(self) -> str:
        return "lstm"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs all layers.

        Args:
            input: [T, B, I], [B, T, I] with batch_first, [T, I] or a PackedSequence, in the dtype of the weights.
            hx: (h0 [L*D, B, P or H], c0 [L*D, B, H]); None for zeros.
            lengths: [B] integers, the true length of each row; y is zero past it.
            reset_mask: bool [T, B] ([B, T] with batch_first), true where a new segment starts.

        Returns:
            y [T, B, D*(P or H)] in the layout of input, and (h, c) shaped like hx.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        y, last = run(self._stack(), input, _pair("lstm", hx), self._flat_weights, self.training, lengths, reset_mask)
        return y, last


class _OneState(_Recurrent):
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers; as LSTM.forward(), but the state is one tensor h [L*D, B, H]."""
        states = _single(self._function, hx)
        y, last = run(self._stack(), input, states, self._flat_weights, self.training, lengths, reset_mask)
        return y, last[0]


class GRU(_OneState):
    """Drop-in for torch.nn.GRU, with ragged batches, resets and both forms of the reset gate.

    Args:
        reset_after: True as torch and cuDNN; False applies the reset gate before the recurrent product (Cho et al.
            2014). The other arguments are those of torch.nn.GRU.

    Example:
        >>> y, h = GRU(3, 4, reset_after=False)(torch.ones(5, 2, 3))
    """

    _function, _gates = "gru", 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.reset_after = bool(reset_after)

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"


class RNN(_OneState):
    """Drop-in for torch.nn.RNN, with ragged batches, resets and the sigmoid as a third nonlinearity.

    Args:
        nonlinearity: "tanh", "relu" or "sigmoid". The other arguments are those of torch.nn.RNN.

    Example:
        >>> y, h = RNN(3, 4, nonlinearity="relu")(torch.ones(5, 2, 3))
    """

    _function, _gates = "rnn", 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_nonlinearity("RNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.nonlinearity = nonlinearity

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


def _check_nonlinearity(name: str, nonlinearity: object) -> None:
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"{name}: nonlinearity is {nonlinearity!r}, expected one of {', '.join(NONLINEARITIES)}")


class _Cell(Module):
    """What the one-step modules share: parameters weight_ih, weight_hh, bias_ih, bias_hh."""

    _function: str
    _gates: int

    def __init__(self, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        _check_options(type(self).__name__, 1, 0.0, 0, input_size=input_size, hidden_size=hidden_size, bias=bias)
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
        _initialise(self, self.hidden_size)

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
        f = self._function
        if not isinstance(x, Tensor):
            raise _checks.type_error(f, "x", x, "a torch.Tensor")
        if x.ndim not in (1, 2):
            raise _checks.ShapeError(f"{f}: x has shape {tuple(x.shape)}, expected 2 sizes (B, I) or 1 size (I,)")
        *batch, width = x.shape
        I, H = self.input_size, self.hidden_size
        if width != I:
            raise _checks.shape_error(f, "x", x.shape, "(B, I)" if batch else "(I,)", (*batch, I))
        for name, s in zip(_checks.STATE_NAMES, states or ()):
            if not isinstance(s, Tensor):
                raise _checks.type_error(f, name, s, "a torch.Tensor")
            if s.shape != (*batch, H):
                raise _checks.shape_error(f, name, s.shape, "(B, H)" if batch else "(H,)", (*batch, H))
        if not batch:
            x, states = x.unsqueeze(0), None if states is None else tuple(s.unsqueeze(0) for s in states)
        if states is not None:
            states = tuple(s.unsqueeze(0) for s in states)
        weights = self._weights()
        stack = Stack(f, self._cell(), 1, 1, len(weights), (I, H, 0), False, 0.0, "")
        _, last = run_batched(stack, x.unsqueeze(0), states, weights, False)
        return tuple(s.squeeze(0) if batch else s.squeeze(0).squeeze(0) for s in last)

    def stepper(self, batch_size: int = 1) -> Any:
        """A stepper with this cell's weights, copied now; see LSTM.stepper()."""
        from ._stepper import Stepper

        weights = [None if w is None else w.detach() for w in (*self._weights(), None, None)]
        return Stepper(self._cell(), [(*weights[:4], None)], batch_size, framework="torch")

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as torch prints them."""
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"bias": True, "reset_after": True, "nonlinearity": "tanh"}
        shown += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k, v) != v]
        return ", ".join(shown)


class LSTMCell(_Cell):
    """Drop-in for torch.nn.LSTMCell: (h, c) = cell(x [B, I], (h [B, H], c [B, H])).

    Example:
        >>> h, c = LSTMCell(3, 4)(torch.ones(2, 3))
    """

    _function, _gates = "lstm_cell", 4

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None):
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def _cell(self) -> str:
        return "lstm"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """One step: input [B, I] or [I], hx a pair of [B, H] or [H] (None for zeros) -> the new pair."""
        h, c = self._step(input, _pair("lstm_cell", hx))
        return h, c


class GRUCell(_Cell):
    """Drop-in for torch.nn.GRUCell, with reset_after as in GRU.

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
    ):
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after = bool(reset_after)

    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input [B, I] or [I], hx [B, H] or [H] (None for zeros) -> the new h."""
        return self._step(input, _single("gru_cell", hx))[0]


class RNNCell(_Cell):
    """Drop-in for torch.nn.RNNCell, with the sigmoid as a third nonlinearity.

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
        _check_nonlinearity("RNNCell", nonlinearity)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input [B, I] or [I], hx [B, H] or [H] (None for zeros) -> the new h."""
        return self._step(input, _single("rnn_cell", hx))[0]
