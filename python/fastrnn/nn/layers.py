"""LSTM, GRU and RNN over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._stack import as_states
from ._options import check_nonlinearity
from ._recurrent import OneState, Recurrent


def _check_norm(name: str, layer_norm: bool, bias: bool, zoneout: Any, grad_clip: float) -> None:
    if layer_norm and not bias:
        raise ValueError(f"{name}: bias is False with layer_norm=True, expected True: the biases are its shifts")
    if layer_norm and zoneout not in (0, (0, 0)):
        raise ValueError(f"{name}: zoneout is {zoneout} with layer_norm=True, expected 0: no cell has both")
    if layer_norm and grad_clip:
        raise ValueError(f"{name}: grad_clip is {grad_clip} with layer_norm=True, expected 0: no cell has both")


class LSTM(Recurrent):
    """Drop-in for torch.nn.LSTM, with ragged batches and resets.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            torch.nn.LSTM; the parameters have torch's names and default initialisation.
        coupled: True for input and forget gates that add up to one, f = 1 - i (CIFG, Greff et al. 2017): weights
            have three gates i g o, a quarter less of everything.
        peepholes: True for gates that see the cell state (Gers & Schmidhuber 2000): one more parameter for each layer
            and direction, weight_peephole_l{k} [3*H], of the gates i, f and o.
        recurrent_activation: "sigmoid", or "hard_sigmoid" for gates clip(x/6 + 1/2, 0, 1) (Keras 3); the gates of Keras
            2 and ONNX, clip(0.2 x + 1/2, 0, 1), are these with the weights and biases of i, f and o times 1.2.
        layer_norm: True for layer normalisation of W x, of R h and of c (Ba et al. 2016): parameters gain_ih_l{k} and
            gain_hh_l{k} [4*H], gain_c_l{k} and bias_c_l{k} [H] for each layer and direction; the biases are its shifts.
        zoneout: probability, or a pair for h and c, that a unit keeps the state of the step before; in eval mode
            the expectation (Krueger et al. 2017).
        recurrent_dropout: probability of dropping a unit of h, for the whole sequence, where the recurrent product
            reads it, in training (Gal & Ghahramani 2016).
        candidate_dropout: probability of dropping a unit of the candidate g, so that a step leaves c to the forget gate
            there, in training (Semeniuta et al. 2016, arXiv 1603.05118).
        candidate_dropout_per: "step" to draw these units anew at every step, "sequence" for the same ones.
        weight_dropout: probability of dropping an entry of weight_hh for the whole sequence, in training (DropConnect;
            Merity et al. 2018).
        input_dropout, output_dropout: probability of dropping a unit, for the whole sequence, of each layer's input and
            of the last layer's output, in training (Gal & Ghahramani 2016).
        checkpoint_every: for training on long sequences in little memory: forward keeps the states of every
            checkpoint_every-th step only, and backward computes the rest again, on CPUs with the same bits; 0 keeps
            everything.
        grad_clip: bound of the gradients of W x + b_ih and of R h + b_hh at every step (Graves 2013, arXiv 1308.0850);
            0 for none.
        learn_initial_state: True for parameters initial_h [L*D, 1, P or H] and initial_c [L*D, 1, H], zero at first,
            that take the place of hx where it is not given.
        num_heads: blocks on the diagonal of the recurrent matrix, a divisor of hidden_size: a unit sees h of its own
            head alone. weight_hh_l{k} is [4*H, H/num_heads], and each row has the columns of its unit's head.
        reset_to: what enters where reset_mask is true: "zero", or "initial": hx, or the learned initial state.

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
        candidate_dropout: float = 0.0,
        candidate_dropout_per: str = "step",
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        checkpoint_every: int = 0,
        grad_clip: float = 0.0,
        learn_initial_state: bool = False,
        num_heads: int = 1,
        reset_to: str = "zero",
    ) -> None:
        _checks.lstm_cell("LSTM", coupled, peepholes, recurrent_activation, layer_norm)
        _check_norm("LSTM", layer_norm, bias, zoneout, grad_clip)
        self._gates = 3 if coupled else 4
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            coupled=bool(coupled), peepholes=bool(peepholes), recurrent_activation=recurrent_activation,
            layer_norm=bool(layer_norm), learn_initial_state=bool(learn_initial_state), num_heads=num_heads, reset_to=reset_to,
        )  # fmt: skip
        dropouts = (recurrent_dropout, weight_dropout, input_dropout, output_dropout, candidate_dropout)
        self._regularise(zoneout, *dropouts, candidate_per=candidate_dropout_per, c=True)
        self._backpropagate(checkpoint_every, grad_clip)

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
        detach_mask: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs all layers.

        Args:
            input: [T, B, I], [B, T, I] with batch_first, [T, I] or a PackedSequence, in the dtype of the weights.
            hx: (h0 [L*D, B, P or H], c0 [L*D, B, H]); None for zeros.
            lengths: [B] integers, the true length of each row; y is zero past it.
            reset_mask: bool [T, B] ([B, T] with batch_first), true where a new segment starts.
            detach_mask: the same shape, true where the state is kept and its gradient is cut (truncated
                back-propagation).
            return_states: True to return the states of every step as well, differentiable.
            return_gates: the same, with the gates after their activation, without gradient, for looking at.

        Returns:
            y [T, B, D*(P or H)] in the layout of input, and (h, c) shaped like hx; then, if asked for, States: tuples
            h, c, gates with a tensor for each layer, [T, B, D*(P or H)], [T, B, D*H] and [T, B, D, G, H].

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        states = as_states("lstm", hx)
        return self._run(input, states, lengths, reset_mask, detach_mask, return_states, return_gates)


class GRU(OneState):
    """Drop-in for torch.nn.GRU, with ragged batches, resets and both forms of the reset gate.

    Args:
        reset_after: True as torch and cuDNN; False applies the reset gate before the recurrent product (Cho et al.
            2014).
        recurrent_activation: "sigmoid" or "hard_sigmoid", as in LSTM.
        layer_norm: True for layer normalisation of W x, of R h (Ba et al. 2016): parameters gain_ih_l{k} and
            gain_hh_l{k} [3*H] for each layer and direction; the biases are its shifts.
        zoneout, recurrent_dropout, candidate_dropout, candidate_dropout_per, weight_dropout, input_dropout,
            output_dropout, checkpoint_every, grad_clip, learn_initial_state, num_heads, reset_to: as in LSTM, of h; the
            candidate is n. The other arguments are those of torch.nn.GRU.

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
        candidate_dropout: float = 0.0,
        candidate_dropout_per: str = "step",
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        checkpoint_every: int = 0,
        grad_clip: float = 0.0,
        learn_initial_state: bool = False,
        num_heads: int = 1,
        reset_to: str = "zero",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _checks.gru_cell("GRU", reset_after, recurrent_activation, layer_norm)
        _check_norm("GRU", layer_norm, bias, zoneout, grad_clip)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype,
            reset_after=bool(reset_after), recurrent_activation=recurrent_activation, layer_norm=bool(layer_norm),
            learn_initial_state=bool(learn_initial_state), num_heads=num_heads, reset_to=reset_to,
        )  # fmt: skip
        dropouts = (recurrent_dropout, weight_dropout, input_dropout, output_dropout, candidate_dropout)
        self._regularise(zoneout, *dropouts, candidate_per=candidate_dropout_per)
        self._backpropagate(checkpoint_every, grad_clip)

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


class RNN(OneState):
    """Drop-in for torch.nn.RNN, with ragged batches, resets and the sigmoid as a third nonlinearity.

    Args:
        nonlinearity: "tanh", "relu" or "sigmoid".
        zoneout, recurrent_dropout, weight_dropout, input_dropout, output_dropout, checkpoint_every, grad_clip,
            learn_initial_state, num_heads, reset_to: as in LSTM, of h. The other arguments are those of torch.nn.RNN.

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
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        checkpoint_every: int = 0,
        grad_clip: float = 0.0,
        learn_initial_state: bool = False,
        num_heads: int = 1,
        reset_to: str = "zero",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_nonlinearity("RNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype,
            nonlinearity=nonlinearity, learn_initial_state=bool(learn_initial_state), num_heads=num_heads, reset_to=reset_to,
        )  # fmt: skip
        self._regularise(zoneout, recurrent_dropout, weight_dropout, input_dropout, output_dropout)
        self._backpropagate(checkpoint_every, grad_clip)

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"
