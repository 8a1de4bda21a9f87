"""What the modules over whole sequences share: parameters, options, call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._backprop import Backprop, backprop_of
from .._cells import CELLS
from .._heads import check_heads
from .._layer_checks import check_candidate
from .._noise import Rates, rates_of
from .._stack import Stack, as_single, run, run_with_states
from ._options import check_options, initialise, make_stepper

_INITIAL = ("initial_h", "initial_c")


class Recurrent(Module):
    """What LSTM, GRU and RNN share; see LSTM for the arguments."""

    _function: str
    _gates: int
    # On the class, so that converted modules have them: regularisers, options of backward.
    _rates: Rates | None = None
    _backprop: Backprop | None = None
    learn_initial_state = False
    num_heads = 1
    reset_to = "zero"

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
        _checks.check_reset_to(type(self).__name__, self.reset_to)
        check_heads(type(self).__name__, self.num_heads, hidden_size, proj_size, getattr(self, "layer_norm", False))
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
        if self.learn_initial_state:
            for name, width in zip(_INITIAL, (proj_size or hidden_size, hidden_size)[: CELLS[self._cell()][1]]):
                initial = torch.empty(num_layers * directions, 1, width, device=device, dtype=dtype)
                self.register_parameter(name, Parameter(initial))
        self.reset_parameters()

    def _regularise(
        self, zoneout: float | tuple[float, float], *dropouts: float, candidate_per: str = "step", c: bool = False
    ) -> None:
        """dropouts: of the recurrence, of weights, of input and output, of the candidate."""
        name = type(self).__name__
        self.zoneout = zoneout
        self.recurrent_dropout, self.weight_dropout, self.input_dropout, self.output_dropout, *candidate = dropouts
        if candidate:
            (self.candidate_dropout,), self.candidate_dropout_per = candidate, candidate_per
        self._rates = rates_of(name, zoneout if c else (zoneout, 0.0), *dropouts, candidate_dropout_per=candidate_per)
        check_candidate(name, self._cell(), candidate[0] if candidate else 0.0)
        _checks.check_zoneout(name, self._rates, self.proj_size)

    def _backpropagate(self, checkpoint_every: int, grad_clip: float) -> None:
        self.checkpoint_every, self.grad_clip = checkpoint_every, grad_clip
        self._backprop = backprop_of(type(self).__name__, checkpoint_every, grad_clip)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction of a layer with inputs of `width`, without the ends of their names."""
        names = _checks.weight_names(1, self.bias, self.proj_size > 0)
        sizes = self._gates, width, self.hidden_size, self.proj_size
        return dict(zip(names, _checks.weight_shapes(*sizes, 1, self.bias, num_heads=self.num_heads)))

    def _derived(self) -> bool:
        """Whether the kernels take something else than the parameters themselves."""
        return False

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        """w_ih, w_hh, b_ih, b_hh and w_hr, made of one direction's parameters; asked only if _derived()."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialises every parameter uniformly in +-1/sqrt(hidden_size); gains of layer normalisation with 1,
        the shift of c and initial states with 0."""
        initialise(self, self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith(("gain_", "bias_c", *_INITIAL)):
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

    def _stack(self, detach_mask: Tensor | None) -> Stack:
        backprop = self._backprop
        if detach_mask is not None:
            backprop = (backprop or Backprop())._replace(detach_mask=detach_mask)
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
            backprop=backprop,
            reset_to=self.reset_to,
            num_heads=self.num_heads,
        )

    def _run(
        self,
        x: Tensor | PackedSequence,
        states: tuple[Tensor, ...] | None,
        lengths: Tensor | Sequence[int] | None,
        reset_mask: Tensor | None,
        detach_mask: Tensor | None,
        return_states: bool,
        return_gates: bool,
    ) -> tuple:
        if states is None and self.learn_initial_state:
            states = self._initial_states(x)
        args = x, states, self._flat_weights, self.training, lengths, reset_mask
        if return_states or return_gates:
            return run_with_states(self._stack(detach_mask), return_gates, *args)
        return run(self._stack(detach_mask), *args)

    def _initial_states(self, x: object) -> tuple[Tensor, ...] | None:
        """The learned states, once for each row of x."""
        own = tuple(getattr(self, name) for name in _INITIAL[: CELLS[self._cell()][1]])
        if isinstance(x, PackedSequence):
            return tuple(s.expand(-1, int(x.batch_sizes[0]), -1) for s in own)
        if not isinstance(x, Tensor) or x.ndim not in (2, 3):
            return None  # x is what the error has to be about
        if x.ndim == 2:
            return tuple(s.squeeze(1) for s in own)
        return tuple(s.expand(-1, x.shape[0 if self.batch_first else 1], -1) for s in own)

    def stepper(self, batch_size: int = 1) -> Any:
        """A stepper with this module's weights, copied now: one time step per call, state kept inside.

        Args:
            batch_size: rows B of each step.

        Returns:
            fastrnn._stepper.Stepper, or fastrnn._device_stepper.DeviceStepper for a module on a GPU: step(x [B, I]) ->
            y [B, P or H].

        Raises:
            ValueError: the module is bidirectional.

        Example:
            >>> from fastrnn.nn import LSTM
            >>> step = LSTM(3, 4).stepper()
            >>> y = step(torch.ones(1, 3))
        """
        if self.bidirectional:
            raise ValueError(f"{self._function}: stepper() needs one direction, expected bidirectional=False")
        if self.learn_initial_state:
            raise NotImplementedError(
                f"{self._function}: stepper() starts from zeros, expected learn_initial_state=False"
            )
        weights = [w.detach() for w in self._flat_weights]
        n = len(weights) // self.num_layers
        layers = []
        for k in range(0, len(weights), n):
            w = weights[k : k + n]
            biases = w[2:4] if n >= 4 else (None, None)
            if getattr(self, "layer_norm", False):
                _checks.check_norm(self._function, self.hidden_size, *biases)
            layers.append((w[0], w[1], *biases, w[-1] if n & 1 else None))
        zoneout = (0.0, 0.0) if self._rates is None else self._rates.zoneout
        return make_stepper(self._cell(), layers, batch_size, zoneout, self.num_heads)

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as torch prints them."""
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False,
            "reset_after": True, "nonlinearity": "tanh", "coupled": False, "peepholes": False,
            "recurrent_activation": "sigmoid", "layer_norm": False, "zoneout": 0.0, "recurrent_dropout": 0.0, "weight_dropout": 0.0,
            "input_dropout": 0.0, "output_dropout": 0.0,
            "checkpoint_every": 0, "grad_clip": 0.0, "learn_initial_state": False, "num_heads": 1,
            "reset_to": "zero", "forget_gate": "sigmoid", "candidate_dropout": 0.0, "candidate_dropout_per": "step",
        }  # fmt: skip
        shown += [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k, v) != v]
        return ", ".join(shown)


class OneState(Recurrent):
    """A layer whose state is h alone."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        detach_mask: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs all layers; as LSTM.forward(), but the state is one tensor h [L*D, B, H]."""
        states = as_single(self._function, hx)
        y, last, *more = self._run(input, states, lengths, reset_mask, detach_mask, return_states, return_gates)
        return y, last[0], *more
