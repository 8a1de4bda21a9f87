"""The functions of fastrnn.functional whose cells torch does not have: FastRNN, FastGRNN, IndRNN, minGRU, minLSTM, AUGRU
and sLSTM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _checks
from ._backprop import backprop_of
from ._cells import CELLS
from ._family_weights import as_augru, as_indrnn, as_minimal, with_attention
from ._stack import Stack, as_states, infer_stack, run, run_one_state, run_with_states


def fastrnn(
    x: Tensor | PackedSequence,
    state: Tensor | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """FastRNN (Kusupati et al. 2018, arXiv 1901.02358): h' = alpha n + beta h, n = tanh(W x + b_ih + R h + b_hh).

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [H, I], w_hh [H, H], b_ih [H] and b_hh [3*H]: after the bias, alpha
            and beta of each unit.

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H].

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = fastrnn(torch.ones(5, 2, 3), None, [torch.ones(4, 3), torch.ones(4, 4), torch.ones(4), torch.ones(12)])
    """
    stack = infer_stack("fastrnn", "fastrnn", weights, bidirectional, batch_first, dropout)
    return run_one_state(stack, x, state, weights, training, lengths, reset_mask)


def fastgrnn(
    x: Tensor | PackedSequence,
    state: Tensor | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """FastGRNN (Kusupati et al. 2018, arXiv 1901.02358): h' = (zeta (1 - z) + nu) n + z h, where
    z = sigmoid(a + b), n = tanh(a) and a = W x + b_ih + R h + b_hh: gate and candidate share both matrices.

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [H, I], w_hh [H, H], b_ih [H] and b_hh [4*H]: after the bias, b (what
            the gate's bias is above the candidate's), zeta and nu of each unit.

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H].

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = fastgrnn(torch.ones(5, 2, 3), None, [torch.ones(4, 3), torch.ones(4, 4), torch.ones(4), torch.ones(16)])
    """
    stack = infer_stack("fastgrnn", "fastgrnn", weights, bidirectional, batch_first, dropout)
    return run_one_state(stack, x, state, weights, training, lengths, reset_mask)


def indrnn(
    x: Tensor | PackedSequence,
    state: Tensor | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    nonlinearity: str = "relu",
) -> tuple[Tensor | PackedSequence, Tensor]:
    """IndRNN (Li et al. 2018, arXiv 1803.04831): h' = f(W x + b + u * h), each unit sees only its own past.

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [H, I], u [H] and b [H].
        nonlinearity: "relu" or "tanh".

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H].

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = indrnn(torch.ones(5, 2, 3), None, [torch.ones(4, 3), torch.ones(4), torch.ones(4)])
    """
    cell = _checks.indrnn_cell("indrnn", nonlinearity)
    if len(weights) % 3 or not weights:
        _checks.check_count("indrnn", "weights", len(weights), "3 for each layer and direction: w_ih, u, b")
    weights = [w for k in range(0, len(weights), 3) for w in as_indrnn(*weights[k : k + 3])]
    stack = infer_stack("indrnn", cell, weights, bidirectional, batch_first, dropout)
    return run_one_state(stack, x, state, weights, training, lengths, reset_mask)


def mingru(
    x: Tensor | PackedSequence,
    state: Tensor | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """minGRU (Feng et al. 2024, arXiv 2410.01201): h' = (1 - z) h + z n, z = sigmoid(W_z x + b_z), n = W_n x + b_n.

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [2*H, I] and b [2*H]; z n.

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H].

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = mingru(torch.ones(5, 2, 3), None, [torch.ones(8, 3), torch.ones(8)])
    """
    stack = _minimal_stack("mingru", weights, bidirectional, batch_first, dropout)
    return run_one_state(stack[0], x, state, stack[1], training, lengths, reset_mask)


def minlstm(
    x: Tensor | PackedSequence,
    state: Tensor | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """minLSTM (Feng et al. 2024, arXiv 2410.01201): h' = (f h + i n) / (f + i), f = sigmoid(W_f x + b_f),
    i = sigmoid(W_i x + b_i), n = W_n x + b_n.

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [3*H, I] and b [3*H]; f i n.

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H].

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = minlstm(torch.ones(5, 2, 3), None, [torch.ones(12, 3), torch.ones(12)])
    """
    stack = _minimal_stack("minlstm", weights, bidirectional, batch_first, dropout)
    return run_one_state(stack[0], x, state, stack[1], training, lengths, reset_mask)


def augru(
    x: Tensor,
    attention: Tensor,
    state: Tensor | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """AUGRU (Zhou et al. 2018, arXiv 1809.03672): a GRU of one layer whose update is scaled by the attention that the
    step gets, h' = h + a (1 - z) (n - h).

    Args:
        x: [T, B, I] ([B, T, I] with batch_first) or [T, I].
        attention: a [T, B] ([B, T] with batch_first) or [T], in the dtype of x.
        lengths, reset_mask, bidirectional, batch_first: as in lstm().
        state: h0 [D, B, H]; None for zeros.
        weights: those of a GRU: for each direction w_ih [3*H, I], w_hh [3*H, H], b_ih, b_hh [3*H] (both or none); r z
            n.

    Returns:
        y [T, B, D*H] in the layout of x, and h [D, B, H].

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = augru(torch.ones(5, 2, 3), torch.rand(5, 2), None, [torch.ones(12, 3), torch.ones(12, 4)])
    """
    n, rest = divmod(len(weights), 1 + bidirectional)
    if rest or n not in (2, 4):
        _checks.check_count("augru", "weights", len(weights), "2 or 4 (with biases) for each direction")
    wide = [
        w for d in (0, 1)[: 1 + bidirectional] for w in as_augru("_l0" + "_reverse" * d, *weights[d * n : d * n + n])
    ]
    stack = infer_stack("augru", "augru", wide, bidirectional, batch_first, 0.0)
    x = with_attention(x, attention, stack.sizes[0] - 1, batch_first)
    return run_one_state(stack, x, state, wide, False, lengths, reset_mask)


def slstm(
    x: Tensor | PackedSequence,
    state: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    forget_gate: str = "sigmoid",
    checkpoint_every: int = 0,
    grad_clip: float = 0.0,
    detach_mask: Tensor | None = None,
    return_states: bool = False,
    return_gates: bool = False,
    num_heads: int = 1,
    reset_to: str = "zero",
) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """sLSTM (Beck et al. 2024, arXiv 2405.04517): c' = f' c + i z, n' = f' n + i, h' = o c' / n', with i = exp(a - m'),
    f' = exp(b - m'), m' = max(a, b) and b = m + log f; the equations are in fastrnn.nn.SLSTM.

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: (h0, c0, n0, m0), each [L*D, B, H], n0 not negative; None for zeros, also in place of one of them.
        weights: for each layer and direction w_ih [4*H, I], w_hh [4*H, H/num_heads], b_ih, b_hh [4*H] (both or none);
            i f z o.
        forget_gate: "sigmoid" or "exponential".
        checkpoint_every, grad_clip, detach_mask, return_states, return_gates, num_heads, reset_to: as in lstm().

    Returns:
        y [T, B, D*H] in the layout of x, and (h, c, n, m), each [L*D, B, H]; then, if asked for, the states of every
        step.

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, (h, c, n, m) = slstm(torch.ones(5, 2, 3), None, [torch.ones(16, 3), torch.ones(16, 4)])
    """
    cell, backprop = (
        _checks.slstm_cell("slstm", forget_gate),
        backprop_of("slstm", checkpoint_every, grad_clip, detach_mask),
    )
    options = {"backprop": backprop, "num_heads": num_heads, "reset_to": reset_to}
    stack = infer_stack("slstm", cell, weights, bidirectional, batch_first, dropout, **options)
    args = x, as_states("slstm", state, 4), weights, training, lengths, reset_mask
    return run_with_states(stack, return_gates, *args) if return_states or return_gates else run(stack, *args)


def _minimal_stack(
    function: str, weights: Sequence[Tensor], bidirectional: bool, batch_first: bool, dropout: float
) -> tuple[Stack, list[Tensor]]:
    if len(weights) % 2 or not weights:
        _checks.check_count(function, "weights", len(weights), "2 for each layer and direction: w_ih, b")
    weights = [
        w for k in range(0, len(weights), 2) for w in as_minimal(function, CELLS[function][0], *weights[k : k + 2])
    ]
    return infer_stack(function, function, weights, bidirectional, batch_first, dropout), weights
