"""FastRNN, FastGRNN, IndRNN, MinGRU, MinLSTM, AUGRU and SLSTM over whole sequences: cells that torch does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._family_weights import as_augru, as_indrnn, as_minimal, with_attention
from .._stack import Stack, as_states
from ._recurrent import OneState, Recurrent


class _Family(OneState):
    """A cell whose parameters are not laid out as torch's; see FastRNN for the arguments."""

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, True, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def _derived(self) -> bool:
        return True

    def _cell(self) -> str:
        return self._function

    def _fill(self, value: float, *names: str) -> None:
        """Sets the parameters of every layer and direction that have these names."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.partition("_l")[0] in names:
                    parameter.fill_(value)


class FastRNN(_Family):
    """FastRNN (Kusupati et al. 2018, arXiv 1901.02358): a residual connection with two learned scalars.

        n = tanh(W x + U h + b)    h' = sigmoid(alpha) n + sigmoid(beta) h

    Parameters of each layer and direction: weight_ih [H, I], weight_hh [H, H], bias [H], alpha [1] and beta [1].

    Args:
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as torch.nn.RNN.

    Example:
        >>> y, h = FastRNN(3, 4)(torch.ones(5, 2, 3))
    """

    _function = "fastrnn"

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        H = self.hidden_size
        return {"weight_ih": (H, width), "weight_hh": (H, H), "bias": (H,), "alpha": (1,), "beta": (1,)}

    def reset_parameters(self) -> None:
        """Matrices and bias uniform in +-1/sqrt(H); alpha -3 and beta 3, as the authors do: almost the identity."""
        super().reset_parameters()
        self._fill(-3.0, "alpha")
        self._fill(3.0, "beta")

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        w_ih, w_hh, bias, alpha, beta = own
        scales = [s.sigmoid().expand(self.hidden_size) for s in (alpha, beta)]
        return [w_ih, w_hh, bias, torch.cat((torch.zeros_like(bias), *scales))]


class FastGRNN(_Family):
    """FastGRNN (Kusupati et al. 2018, arXiv 1901.02358): a gate that shares both matrices with the candidate.

        z = sigmoid(W x + U h + bias_gate)    n = tanh(W x + U h + bias_update)
        h' = (sigmoid(zeta) (1 - z) + sigmoid(nu)) n + z h

    Parameters of each layer and direction: weight_ih [H, I], weight_hh [H, H], bias_gate [H], bias_update [H],
    zeta [1] and nu [1].

    Args:
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as torch.nn.RNN.

    Example:
        >>> y, h = FastGRNN(3, 4)(torch.ones(5, 2, 3))
    """

    _function = "fastgrnn"

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        H = self.hidden_size
        biases = {"bias_gate": (H,), "bias_update": (H,)}
        return {"weight_ih": (H, width), "weight_hh": (H, H), **biases, "zeta": (1,), "nu": (1,)}

    def reset_parameters(self) -> None:
        """Matrices uniform in +-1/sqrt(H); both biases 1, zeta 1 and nu -4, as the authors do."""
        super().reset_parameters()
        self._fill(1.0, "bias_gate", "bias_update", "zeta")
        self._fill(-4.0, "nu")

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        w_ih, w_hh, bias_gate, bias_update, zeta, nu = own
        scales = [s.sigmoid().expand(self.hidden_size) for s in (zeta, nu)]
        more = (torch.zeros_like(bias_update), bias_gate - bias_update)
        return [w_ih, w_hh, bias_update, torch.cat((*more, *scales))]


class IndRNN(_Family):
    """IndRNN (Li et al. 2018, arXiv 1803.04831): h' = f(W x + u * h + b), each unit sees only its own past.

    Parameters of each layer and direction: weight_ih [H, I], weight_hh [H] (the paper's u) and bias [H].

    Args:
        nonlinearity: "relu" or "tanh". The other arguments are those of FastRNN.

    Example:
        >>> y, h = IndRNN(3, 4)(torch.ones(5, 2, 3))
    """

    _function = "indrnn"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _checks.indrnn_cell("IndRNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )
        self.nonlinearity = nonlinearity

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        H = self.hidden_size
        return {"weight_ih": (H, width), "weight_hh": (H,), "bias": (H,)}

    def reset_parameters(self) -> None:
        """Input matrix and bias uniform in +-1/sqrt(H), u uniform in [0, 1], as in the paper (section 5.1)."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("weight_hh"):
                torch.nn.init.uniform_(parameter, 0, 1)

    def _cell(self) -> str:
        return _checks.indrnn_cell("IndRNN", self.nonlinearity)

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        return as_indrnn(*own)


class MinGRU(_Family):
    """minGRU (Feng et al. 2024, arXiv 2410.01201): gates that do not look at the past, so a step costs no matrix
    product.

        z = sigmoid(W_z x + b_z)    n = W_n x + b_n    h' = (1 - z) h + z n

    Parameters of each layer and direction: weight_ih [2*H, I] and bias [2*H], z then n.

    Args:
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as torch.nn.RNN.

    Example:
        >>> y, h = MinGRU(3, 4)(torch.ones(5, 2, 3))
    """

    _function, _gates = "mingru", 2

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        rows = self._gates * self.hidden_size
        return {"weight_ih": (rows, width), "bias": (rows,)}

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        return as_minimal(self._function, self._gates, *own)


class MinLSTM(MinGRU):
    """minLSTM (Feng et al. 2024, arXiv 2410.01201): forget and input gates of the input alone, in proportion.

        f = sigmoid(W_f x + b_f)    i = sigmoid(W_i x + b_i)    n = W_n x + b_n    h' = (f h + i n) / (f + i)

    Parameters of each layer and direction: weight_ih [3*H, I] and bias [3*H], f i n.

    Args:
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device, dtype: as torch.nn.RNN.

    Example:
        >>> y, h = MinLSTM(3, 4)(torch.ones(5, 2, 3))
    """

    _function, _gates = "minlstm", 3


class AUGRU(_Family):
    """AUGRU (Zhou et al. 2018, "Deep Interest Evolution Network", arXiv 1809.03672): a GRU whose update is scaled by
    the attention a that each step gets.

        r, z = sigmoid(W x + b_ih + R h + b_hh)    n = tanh(W_n x + b_in + r * (R_n h + b_hn))    h' = h + a (1 - z) (n
        - h)

    The paper's update gate is 1 - z, so that with a = 1 this is torch.nn.GRU, and its state_dict loads: weight_ih_l0
    [3*H, I], weight_hh_l0 [3*H, H], bias_ih_l0, bias_hh_l0 [3*H], r z n. A stepper takes x with the attention as its
    last column. One layer.

    Args:
        input_size, hidden_size, bias, batch_first, bidirectional, device, dtype: as torch.nn.GRU.

    Example:
        >>> y, h = AUGRU(3, 4)(torch.ones(5, 2, 3), torch.rand(5, 2))
    """

    _function, _gates = "augru", 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        OneState.__init__(self, input_size, hidden_size, 1, bias, batch_first, 0.0, bidirectional, 0, device, dtype)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        shapes = _checks.weight_shapes(self._gates, width, self.hidden_size, 0, 1, self.bias)
        return dict(zip(_checks.weight_names(1, self.bias, False), shapes))

    def _for_kernels(self, own: list[Tensor]) -> list[Tensor]:
        return as_augru("_l0", *own)

    def _stack(self, detach_mask: Tensor | None) -> Stack:
        stack, (I, H, P) = super()._stack(detach_mask), (self.input_size, self.hidden_size, 0)
        return stack._replace(sizes=(I + 1, H, P), per_direction=4 if self.bias else 2)

    def forward(
        self,
        input: Tensor,
        attention: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        detach_mask: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layer; as LSTM.forward(), with the attention [T, B] ([B, T] with batch_first, [T] for unbatched
        input) of every step, in the dtype of input; hx and the last state are one tensor h [D, B, H], the gates are r z
        n and a."""
        x = with_attention(input, attention, self.input_size, self.batch_first)
        options = {"lengths": lengths, "reset_mask": reset_mask, "detach_mask": detach_mask}
        return super().forward(x, hx, **options, return_states=return_states, return_gates=return_gates)


class SLSTM(Recurrent):
    """sLSTM (Beck et al. 2024, "xLSTM", arXiv 2405.04517, section 2.2): an LSTM with exponential gates, a normaliser n
    and a stabiliser m, which keeps the exponents in range and drops out of h.

        a = W_i x + b_ii + R_i h + b_hi    b = m + log f    m' = max(a, b)    i = exp(a - m')    f' = exp(b - m')
        c' = f' c + i z    n' = f' n + i    h' = o c' / n'

    with f = sigmoid or exp, z = tanh and o = sigmoid of their own W x + b_ih + R h + b_hh. In a state with n = 0, the
    zero state among them, m is not read and m' = a. Parameters of each layer and direction as torch.nn.LSTM: weight_ih
    [4*H, I], weight_hh [4*H, H/num_heads], bias_ih and bias_hh [4*H], i f z o.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as torch.nn.LSTM.
        forget_gate: "sigmoid" or "exponential".
        num_heads, checkpoint_every, grad_clip, reset_to: as in LSTM.

    Example:
        >>> y, (h, c, n, m) = SLSTM(3, 4, num_heads=2)(torch.ones(5, 2, 3))
    """

    _function, _gates = "slstm", 4

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
        forget_gate: str = "sigmoid",
        num_heads: int = 1,
        checkpoint_every: int = 0,
        grad_clip: float = 0.0,
        reset_to: str = "zero",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _checks.slstm_cell("SLSTM", forget_gate)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype,
            forget_gate=forget_gate, num_heads=num_heads, reset_to=reset_to,
        )  # fmt: skip
        self._backpropagate(checkpoint_every, grad_clip)

    def _cell(self) -> str:
        return _checks.slstm_cell("SLSTM", self.forget_gate)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        detach_mask: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Runs all layers; as LSTM.forward(), with the states (h, c, n, m), each [L*D, B, H], n0 not negative. States
        of every step have n and m besides; the gates i and f are those that multiply, exp(a - m') and exp(b - m')."""
        states = as_states("slstm", hx, 4)
        return self._run(input, states, lengths, reset_mask, detach_mask, return_states, return_gates)
