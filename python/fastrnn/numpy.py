"""Recurrent layers and attention on NumPy arrays: inference with torch's weights and conventions, without torch.

>>> import numpy as np
>>> weights = {"weight_ih_l0": np.ones((12, 3), "f"), "weight_hh_l0": np.ones((12, 4), "f")}
>>> y, h = GRU(weights)(np.ones((5, 2, 3), "f"))
>>> y.shape, h.shape
((5, 2, 4), (1, 2, 4))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._checks import check_rank, check_shape, check_weights, dtype_error, gru_cell, indrnn_cell, lstm_cell, slstm_cell
from ._numpy_attention import AdditiveAttention, additive_attention, dot_attention
from ._numpy_stack import Recurrent, check_floats

__all__ = [
    "AUGRU",
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "AdditiveAttention",
    "FastGRNN",
    "FastRNN",
    "IndRNN",
    "MinGRU",
    "MinLSTM",
    "additive_attention",
    "dot_attention",
]


class LSTM(Recurrent):
    """LSTM stack on NumPy arrays (torch.nn.LSTM's weights, gate order i f g o, projection included).

    Args:
        weights: a state_dict, or a list in torch's `_flat_weights` order; copied.
        batch_first: x and y are [B, T, *].
        prefix: of the names in the state_dict.
        coupled: True for f = 1 - i (CIFG), gate order i g o.
        peepholes: True for gates that see the cell state: weight_peephole_l{k} [3*H] of i, f, o in a state_dict; in a
            list b_hh is [7*H] and ends with them.
        recurrent_activation: "sigmoid", or "hard_sigmoid" for gates clip(x/6 + 1/2, 0, 1).
        layer_norm: True for fastrnn.nn.LSTM's parameters gain_ih, gain_hh, gain_c and bias_c besides; from a
            state_dict.
        zoneout: probability (or a pair for h and c) that the layer was trained with; its expectation is computed.
        num_heads: blocks on the diagonal of the recurrent matrix: weight_hh is [4*H, H/num_heads].
        reset_to: "zero", or "initial": what enters where reset_mask is true is the state given.
    """

    _function, _gates = "lstm", 4

    def __init__(
        self,
        weights: Any,
        *,
        batch_first: bool = False,
        prefix: str = "",
        coupled: bool = False,
        peepholes: bool = False,
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        num_heads: int = 1,
        reset_to: str = "zero",
    ):
        self.coupled, self.peepholes = bool(coupled), bool(peepholes)
        self.recurrent_activation, self.layer_norm = recurrent_activation, bool(layer_norm)
        self._gates = 3 if coupled else 4
        super().__init__(
            weights, batch_first=batch_first, prefix=prefix, zoneout=zoneout, num_heads=num_heads, reset_to=reset_to
        )

    def _cell(self) -> str:
        return lstm_cell("lstm", self.coupled, self.peepholes, self.recurrent_activation, self.layer_norm)

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.layer_norm:
            return _join(own, ("bias_hh", "gain_hh", "gain_c", "bias_c", "gain_ih"))
        if not self.peepholes or "weight_peephole" not in own:
            return own
        peephole = own.pop("weight_peephole")
        zeros = np.zeros(4 * (peephole.size // 3), peephole.dtype)
        biases = [own.get(name, zeros) for name in ("bias_ih", "bias_hh")]
        return own | {"bias_ih": biases[0], "bias_hh": np.concatenate((biases[1], peephole))}


class GRU(Recurrent):
    """GRU stack on NumPy arrays (gate order r z n).

    Args:
        weights, batch_first, prefix: as in LSTM.
        reset_after: True for torch's form, False for that of Cho et al. (2014).
        recurrent_activation, layer_norm, zoneout, num_heads, reset_to: as in LSTM, zoneout of h; layer_norm has gain_ih
            and gain_hh.
    """

    _function, _gates = "gru", 3

    def __init__(
        self,
        weights: Any,
        *,
        batch_first: bool = False,
        prefix: str = "",
        reset_after: bool = True,
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float = 0.0,
        num_heads: int = 1,
        reset_to: str = "zero",
    ):
        self.reset_after, self.recurrent_activation = bool(reset_after), recurrent_activation
        self.layer_norm = bool(layer_norm)
        super().__init__(
            weights, batch_first=batch_first, prefix=prefix, zoneout=zoneout, num_heads=num_heads, reset_to=reset_to
        )

    def _cell(self) -> str:
        return gru_cell("gru", self.reset_after, self.recurrent_activation, self.layer_norm)

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _join(own, ("bias_hh", "gain_hh", "gain_ih")) if self.layer_norm else own


class RNN(Recurrent):
    """Elman RNN stack on NumPy arrays.

    Args:
        weights, batch_first, prefix: as in LSTM.
        nonlinearity: "tanh", "relu" or "sigmoid".
        zoneout, num_heads, reset_to: as in LSTM, zoneout of h.
    """

    _function, _gates = "rnn", 1

    def __init__(
        self,
        weights: Any,
        *,
        batch_first: bool = False,
        prefix: str = "",
        nonlinearity: str = "tanh",
        zoneout: float = 0.0,
        num_heads: int = 1,
        reset_to: str = "zero",
    ):
        if nonlinearity not in ("tanh", "relu", "sigmoid"):
            raise ValueError(f"rnn: nonlinearity is {nonlinearity!r}, expected 'tanh', 'relu' or 'sigmoid'")
        self.nonlinearity = nonlinearity
        super().__init__(
            weights, batch_first=batch_first, prefix=prefix, zoneout=zoneout, num_heads=num_heads, reset_to=reset_to
        )

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


class _Family(Recurrent):
    _gates = 1

    def __init__(self, weights: Any, *, batch_first: bool = False, prefix: str = ""):
        super().__init__(weights, batch_first=batch_first, prefix=prefix)

    def _cell(self) -> str:
        return self._function


class FastRNN(_Family):
    """FastRNN stack on NumPy arrays (Kusupati et al. 2018); the parameters of fastrnn.nn.FastRNN.

    Args:
        weights: a state_dict; copied. Or a list in the order of fastrnn.functional.fastrnn.
        batch_first, prefix: as in LSTM.
    """

    _function = "fastrnn"

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "alpha" not in own:
            return own
        bias, *scales = (own.pop(name) for name in ("bias", "alpha", "beta"))
        return own | {"bias_ih": bias, "bias_hh": _vectors(bias, [np.zeros_like(bias)], scales)}


class FastGRNN(_Family):
    """FastGRNN stack on NumPy arrays (Kusupati et al. 2018); the parameters of fastrnn.nn.FastGRNN.

    Args:
        weights: a state_dict; copied. Or a list in the order of fastrnn.functional.fastgrnn.
        batch_first, prefix: as in LSTM.
    """

    _function = "fastgrnn"

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "zeta" not in own:
            return own
        gate, update, *scales = (own.pop(name) for name in ("bias_gate", "bias_update", "zeta", "nu"))
        return own | {"bias_ih": update, "bias_hh": _vectors(update, [np.zeros_like(update), gate - update], scales)}


class IndRNN(_Family):
    """IndRNN stack on NumPy arrays (Li et al. 2018); the parameters of fastrnn.nn.IndRNN.

    Args:
        weights: a state_dict; copied.
        batch_first, prefix: as in LSTM.
        nonlinearity: "relu" or "tanh".
    """

    _function = "indrnn"

    def __init__(self, weights: Any, *, batch_first: bool = False, prefix: str = "", nonlinearity: str = "relu"):
        self.nonlinearity = nonlinearity
        indrnn_cell("indrnn", nonlinearity)
        super().__init__(weights, batch_first=batch_first, prefix=prefix)

    def _cell(self) -> str:
        return indrnn_cell("indrnn", self.nonlinearity)

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        u, bias = (own.pop(name, np.zeros(0, np.float32)) for name in ("weight_hh", "bias"))
        check_shape("indrnn", f"weight_hh{end}", u.shape, "(H,)", own["weight_ih"].shape[:1])
        return own | {
            "weight_hh": np.zeros((u.size, 0), u.dtype),
            "bias_ih": bias,
            "bias_hh": np.concatenate((np.zeros_like(u), u)),
        }


class MinGRU(_Family):
    """minGRU stack on NumPy arrays (Feng et al. 2024); the parameters of fastrnn.nn.MinGRU.

    Args:
        weights: a state_dict; copied.
        batch_first, prefix: as in LSTM.
    """

    _function, _gates = "mingru", 2

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bias = own.pop("bias", np.zeros(0, np.float32))
        rows = own["weight_ih"].shape[0]
        return own | {
            "weight_hh": np.zeros((rows, 0), own["weight_ih"].dtype),
            "bias_ih": bias,
            "bias_hh": np.zeros_like(bias),
        }


class MinLSTM(MinGRU):
    """minLSTM stack on NumPy arrays (Feng et al. 2024); the parameters of fastrnn.nn.MinLSTM.

    Args:
        weights: a state_dict; copied.
        batch_first, prefix: as in LSTM.
    """

    _function, _gates = "minlstm", 3


class AUGRU(_Family):
    """AUGRU layer on NumPy arrays (Zhou et al. 2018); the parameters of fastrnn.nn.AUGRU.

    Args:
        weights: a state_dict; copied.
        batch_first, prefix: as in LSTM.
    """

    _function, _gates = "augru", 4

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        w_ih, w_hh, *biases = (np.asarray(own[n]) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if n in own)
        check_rank("augru", f"weight_ih{end}", w_ih.shape, "(3*H, I)")
        H = w_ih.shape[0] // 3
        shapes, whole = [w.shape for w in (w_ih, w_hh, *biases)], (w_ih.shape[1], H, 0, 1, bool(biases))
        check_weights("augru", 3, shapes, *whole, end)
        wide = [np.pad(w_ih, ((0, H), (0, 1))), np.pad(w_hh, ((0, H), (0, 0))), *(np.pad(b, (0, H)) for b in biases)]
        wide[0][3 * H :, -1] = 1  # the fourth gate is the attention, see as_augru()
        return dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), wide))

    def __call__(
        self, x: np.ndarray, attention: np.ndarray, state: Any = None, lengths: Any = None, reset_mask: Any = None
    ) -> tuple:
        """Runs whole sequences; as LSTM, with attention [T, B] ([B, T] with batch_first, [T] for unbatched x), in the dtype of x."""
        for name, array in (("x", x), ("attention", attention)):
            check_floats("augru", name, array)
        if attention.dtype != x.dtype:
            raise dtype_error("augru", "attention", attention.dtype, f"{x.dtype} (the dtype of x)")
        check_shape("augru", "x", x.shape[-1:], "(I,)", (self.input_size - 1,))
        check_shape("augru", "attention", attention.shape, "that of x without I", x.shape[:-1])
        return super().__call__(np.concatenate((x, attention[..., None]), -1), state, lengths, reset_mask)


class SLSTM(Recurrent):
    """sLSTM stack on NumPy arrays (Beck et al. 2024); the parameters of fastrnn.nn.SLSTM, gate order i f z o.

    The state is (h, c, n, m), each [L*D, B, H].

    Args:
        weights, batch_first, prefix, num_heads, reset_to: as in LSTM.
        forget_gate: "sigmoid" or "exponential".
    """

    _function, _gates = "slstm", 4

    def __init__(
        self,
        weights: Any,
        *,
        batch_first: bool = False,
        prefix: str = "",
        forget_gate: str = "sigmoid",
        num_heads: int = 1,
        reset_to: str = "zero",
    ):
        self.forget_gate = forget_gate
        slstm_cell("slstm", forget_gate)
        super().__init__(weights, batch_first=batch_first, prefix=prefix, num_heads=num_heads, reset_to=reset_to)

    def _cell(self) -> str:
        return slstm_cell("slstm", self.forget_gate)


def _join(own: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """b_hh of a cell whose vectors are parameters of their own, if they are."""
    if names[1] not in own:
        return own
    parts = [own.pop(name) for name in names if name in own]
    return own | {"bias_hh": np.concatenate(parts)}


def _vectors(bias: np.ndarray, first: list[np.ndarray], scales: list[np.ndarray]) -> np.ndarray:
    """b_hh of a cell that ends with vectors: those given, then the sigmoid of each scalar for every unit."""
    wide = [np.full(bias.shape, 1 / (1 + np.exp(-s.astype(np.float64))), bias.dtype) for s in scales]
    return np.concatenate((*first, *wide))
