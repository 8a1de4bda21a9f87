"""LSTM, GRU and RNN over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._noise import Rates
from .._stack import Stack, as_pair, as_single, rates_of, run, run_with_states
from ._options import check_nonlinearity, check_options, initialise, make_stepper


class _Recurrent(Module):
    """What LSTM, GRU and RNN share; see LSTM for the arguments."""

    _function: str
    _gates: int
    _rates: Rates | None = None  # regularisers; on the class, so that converted modules have it

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
        **options: Any,
    ) -> None:
        """options: attributes that the subclass needs before the parameters are made."""
        super().__init__()
        check_options(
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
        for name, value in options.items():
            setattr(self, name, value)
        directions = 2 if bidirectional else 1
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            width = directions * (proj_size or hidden_size) if layer else input_size
            for end in ("", "_reverse")[:directions]:
                shapes = {f"{name}_l{layer}{end}": shape for name, shape in self._shapes(width).items()}
                for name, shape in shapes.items():
                    self.register_parameter(name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
                self._all_weights.append(list(shapes))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self.reset_parameters()

    def _regularise(
        self, zoneout: float | tuple[float, float], recurrent_dropout: float, weight_dropout: float, c: bool = False
    ) -> None:
        name = type(self).__name__
        self.zoneout, self.recurrent_dropout, self.weight_dropout = zoneout, recurrent_dropout, weight_dropout
        self._rates = rates_of(name, zoneout if c else (zoneout, 0.0), recurrent_dropout, weight_dropout)
        _checks.check_zoneout(name, self._rates, self.proj_size)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction of a layer with inputs of `width`, without the ends of their names."""
        names = _checks.weight_names(1, self.bias, self.proj_size > 0)
        return dict(
            zip(names, _checks.weight_shapes(self._gates, width, self.hidden_size, self.proj_size, 1, self.bias))
        )

    def _derived(self) -> bool:
        """Whether the kernels take something else than the parameters themselves."""
        return False

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        """w_ih, w_hh, b_ih, b_hh and w_hr, made of one direction's parameters; asked only if _derived()."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialises every parameter uniformly in +-1/sqrt(hidden_size); gains of layer normalisation with 1,
        the shift of c with 0."""
        initialise(self, self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith(("gain_", "bias_c")):
                    parameter.fill_(name.startswith("gain_"))

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels need no particular placement. Kept because code written for torch calls it."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, in torch's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self) -> list[Tensor]:
        """All weights in the order that fastrnn.functional takes."""
        return self._weights()

    def _weights(self) -> list[Tensor]:
        own = self._parameters
        try:
            flat = [own[name] for name in self._flat_weights_names]
        except KeyError:  # parametrized, or replaced by a plain tensor
            flat = [getattr(self, name) for name in self._flat_weights_names]
        if not self._derived():
            return flat
        n = len(self._all_weights[0])
        return [w for k in range(0, len(flat), n) for w in self._for_kernels(flat[k : k + n])]

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
            4 + (self.proj_size > 0) if self._derived() else len(self._all_weights[0]),
            (self.input_size, self.hidden_size, self.proj_size),
            self.batch_first,
            self.dropout,
            rates=None if self._rates is None else self._rates.drawn(self._function, None, self.training),
        )

    def _run(
        self,
        x: Tensor | PackedSequence,
        states: tuple[Tensor, ...] | None,
        lengths: Tensor | Sequence[int] | None,
        reset_mask: Tensor | None,
        return_states: bool,
        return_gates: bool,
    ) -> tuple:
        args = x, states, self._flat_weights, self.training, lengths, reset_mask
        if return_states or return_gates:
            return run_with_states(self._stack(), return_gates, *args)
        return run(self._stack(), *args)

    def stepper(self, batch_size: int = 1) -> Any:
        """A stepper with this module's weights, copied now: one time step per call, state kept inside.

        Args:
            batch_size: rows B of each step.

        Returns:
            fastrnn._stepper.Stepper, or fastrnn._device_stepper.DeviceStepper for a module on a GPU: step(x [B, I]) -> y
            [B, P or H].

        Raises:
            ValueError: the module is bidirectional.

        Example:
            >>> step = LSTM(3, 4).stepper()
            >>> y = step(torch.ones(1, 3))
        """
        if self.bidirectional:
            raise ValueError(f"{self._function}: stepper() needs one direction, expected bidirectional=False")
        weights = [w.detach() for w in self._flat_weights]
        n = len(weights) // self.num_layers
        layers = []
        for k in range(0, len(weights), n):
            w = weights[k : k + n]
            biases = w[2:4] if n >= 4 else (None, None)
            layers.append((w[0], w[1], *biases, w[-1] if n & 1 else None))
        zoneout = (0.0, 0.0) if self._rates is None else self._rates.zoneout
        return make_stepper(self._cell(), layers, batch_size, zoneout)

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as torch prints them."""
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
            "reset_after": True, "nonlinearity": "tanh", "coupled": False, "peepholes": False,
            "recurrent_activation": "sigmoid", "layer_norm": False, "zoneout": 0.0, "recurrent_dropout": 0.0, "weight_dropout": 0.0,
        }  # fmt: skip
        shown += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k, v) != v]
        return ", ".join(shown)


def _check_norm(name: str, layer_norm: bool, bias: bool, zoneout: Any) -> None:
    if layer_norm and not bias:
        raise ValueError(f"{name}: bias is False with layer_norm=True, expected True: the biases are its shifts")
    if layer_norm and zoneout not in (0, (0, 0)):
        raise ValueError(f"{name}: zoneout is {zoneout} with layer_norm=True, expected 0: no cell has both")


class LSTM(_Recurrent):
    """Drop-in for torch.nn.LSTM, with ragged batches and resets.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            torch.nn.LSTM; the parameters have torch's names and default initialisation.
        coupled: True for input and forget gates that add up to one, f = 1 - i (CIFG, Greff et al. 2017): weights
            have three gates i g o, a quarter less of everything.
        peepholes: True for gates that see the cell state (Gers & Schmidhuber 2000): one more parameter for each layer
            and direction, weight_peephole_l{k} [3*H], of the gates i, f and o.
        recurrent_activation: "sigmoid", or "hard_sigmoid" for gates clip(x/6 + 1/2, 0, 1) (Keras 3); the gates of Keras 2
            and ONNX, clip(0.2 x + 1/2, 0, 1), are these with the weights and biases of i, f and o times 1.2.
        layer_norm: True for layer normalisation of W x, of R h and of c (Ba et al. 2016): parameters gain_ih_l{k} and
            gain_hh_l{k} [4*H], gain_c_l{k} and bias_c_l{k} [H] for each layer and direction; the biases are its shifts.
        zoneout: probability, or a pair for h and c, that a unit keeps the state of the step before; in eval mode
            the expectation (Krueger et al. 2017).
        recurrent_dropout: probability of dropping a unit of h, for the whole sequence, where the recurrent product reads
            it, in training (Gal & Ghahramani 2016).
        weight_dropout: probability of dropping an entry of weight_hh for the whole sequence, in training (DropConnect;
            Merity et al. 2018).

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
        *,
        coupled: bool = False,
        peepholes: bool = False,
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        _checks.lstm_cell("LSTM", coupled, peepholes, recurrent_activation, layer_norm)
        _check_norm("LSTM", layer_norm, bias, zoneout)
        self._gates = 3 if coupled else 4
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            coupled=bool(coupled), peepholes=bool(peepholes), recurrent_activation=recurrent_activation,
            layer_norm=bool(layer_norm),
        )  # fmt: skip
        self._regularise(zoneout, recurrent_dropout, weight_dropout, c=True)

    def _cell(self) -> str:
        return _checks.lstm_cell("LSTM", self.coupled, self.peepholes, self.recurrent_activation, self.layer_norm)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        own, H = super()._shapes(width), self.hidden_size
        if self.peepholes:
            own["weight_peephole"] = (3 * H,)
        if self.layer_norm:
            own |= {"gain_ih": (4 * H,), "gain_hh": (4 * H,), "gain_c": (H,), "bias_c": (H,)}
        return own

    def _derived(self) -> bool:
        return self.peepholes or self.layer_norm

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        if self.layer_norm:
            w_ih, w_hh, b_ih, b_hh, *w_hr, gain_ih, gain_hh, gain_c, bias_c = own
            return [w_ih, w_hh, b_ih, torch.cat((b_hh, gain_hh, gain_c, bias_c, gain_ih)), *w_hr]
        w_ih, w_hh, *rest, peephole = own
        b_ih, b_hh = rest[:2] if self.bias else (w_ih.new_zeros(w_ih.shape[0]),) * 2
        return [w_ih, w_hh, b_ih, torch.cat((b_hh, peephole)), *rest[2 * self.bias :]]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs all layers.

        Args:
            input: [T, B, I], [B, T, I] with batch_first, [T, I] or a PackedSequence, in the dtype of the weights.
            hx: (h0 [L*D, B, P or H], c0 [L*D, B, H]); None for zeros.
            lengths: [B] integers, the true length of each row; y is zero past it.
            reset_mask: bool [T, B] ([B, T] with batch_first), true where a new segment starts.
            return_states: True to return the states of every step as well, differentiable.
            return_gates: the same, with the gates after their activation, without gradient, for looking at.

        Returns:
            y [T, B, D*(P or H)] in the layout of input, and (h, c) shaped like hx; then, if asked for, States: tuples h,
            c, gates with a tensor for each layer, [T, B, D*(P or H)], [T, B, D*H] and [T, B, D, G, H].

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        states = as_pair("lstm", hx)
        return self._run(input, states, lengths, reset_mask, return_states, return_gates)


class _OneState(_Recurrent):
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers; as LSTM.forward(), but the state is one tensor h [L*D, B, H]."""
        states = as_single(self._function, hx)
        y, last, *more = self._run(input, states, lengths, reset_mask, return_states, return_gates)
        return y, last[0], *more


class GRU(_OneState):
    """Drop-in for torch.nn.GRU, with ragged batches, resets and both forms of the reset gate.

    Args:
        reset_after: True as torch and cuDNN; False applies the reset gate before the recurrent product (Cho et al.
            2014).
        recurrent_activation: "sigmoid" or "hard_sigmoid", as in LSTM.
        layer_norm: True for layer normalisation of W x, of R h (Ba et al. 2016): parameters gain_ih_l{k} and
            gain_hh_l{k} [3*H] for each layer and direction; the biases are its shifts.
        zoneout, recurrent_dropout, weight_dropout: as in LSTM, zoneout of h. The other arguments are those of torch.nn.GRU.

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
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _checks.gru_cell("GRU", reset_after, recurrent_activation, layer_norm)
        _check_norm("GRU", layer_norm, bias, zoneout)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype,
            reset_after=bool(reset_after), recurrent_activation=recurrent_activation, layer_norm=bool(layer_norm),
        )  # fmt: skip
        self._regularise(zoneout, recurrent_dropout, weight_dropout)

    def _cell(self) -> str:
        return _checks.gru_cell("GRU", self.reset_after, self.recurrent_activation, self.layer_norm)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        gains = {"gain_ih": (3 * self.hidden_size,), "gain_hh": (3 * self.hidden_size,)}
        return super()._shapes(width) | (gains if self.layer_norm else {})

    def _derived(self) -> bool:
        return self.layer_norm

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        w_ih, w_hh, b_ih, b_hh, gain_ih, gain_hh = own
        return [w_ih, w_hh, b_ih, torch.cat((b_hh, gain_hh, gain_ih))]


class RNN(_OneState):
    """Drop-in for torch.nn.RNN, with ragged batches, resets and the sigmoid as a third nonlinearity.

    Args:
        nonlinearity: "tanh", "relu" or "sigmoid".
        zoneout, recurrent_dropout, weight_dropout: as in LSTM, zoneout of h. The other arguments are those of torch.nn.RNN.

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
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_nonlinearity("RNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.nonlinearity = nonlinearity
        self._regularise(zoneout, recurrent_dropout, weight_dropout)

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"
