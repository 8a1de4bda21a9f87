"""Recurrent networks as functions: the weights are arguments, in the order of a torch module's `_flat_weights`.

Many layers, two directions, dropout between layers, ragged and packed batches, narrow dtypes. The modules of fastrnn.nn
call the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _checks
from ._backprop import backprop_of
from ._cells import CELLS
from ._functional_family import augru, fastgrnn, fastrnn, indrnn, mingru, minlstm, slstm
from ._noise import Rates, rates_of
from ._stack import Stack, as_single, as_states, infer_stack, run, run_with_states
from .attention import additive_attention, additive_scores, dot_attention, dot_scores
from .decoder import DecoderWeights, attention_decoder
from .generation import beam_search, generate

__all__ = [
    "DecoderWeights",
    "additive_attention",
    "additive_scores",
    "attention_decoder",
    "augru",
    "beam_search",
    "dot_attention",
    "dot_scores",
    "fastgrnn",
    "fastrnn",
    "generate",
    "gru",
    "indrnn",
    "lstm",
    "mingru",
    "minlstm",
    "rnn",
    "slstm",
]


def lstm(
    x: Tensor | PackedSequence,
    state: tuple[Tensor, Tensor] | None = None,
    weights: Sequence[Tensor] = (),
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    coupled: bool = False,
    peepholes: bool = False,
    recurrent_activation: str = "sigmoid",
    zoneout: float | tuple[float, float] = 0.0,
    recurrent_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    candidate_dropout_per: str = "step",
    weight_dropout: float = 0.0,
    input_dropout: float = 0.0,
    output_dropout: float = 0.0,
    seed: int | None = None,
    checkpoint_every: int = 0,
    grad_clip: float = 0.0,
    detach_mask: Tensor | None = None,
    return_states: bool = False,
    return_gates: bool = False,
    layer_norm: bool = False,
    num_heads: int = 1,
    reset_to: str = "zero",
) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
    """LSTM (Hochreiter & Schmidhuber 1997, forget gate of Gers 2000, projection of Sak 2014) over whole sequences.

    Args:
        x: [T, B, I] ([B, T, I] with batch_first), [T, I] or a PackedSequence; float32, float64, bfloat16, float16.
        state: (h0 [L*D, B, P or H], c0 [L*D, B, H]); None for zeros.
        weights: for each layer and direction w_ih [4*H, I], w_hh [4*H, P or H], b_ih, b_hh [4*H] (both or none) and
            w_hr [P, H] (with projection); gate order i f g o. The number of layers follows from the list.
        bidirectional: True if weights has two directions for each layer; y has both side by side.
        batch_first: True if x, y and the masks have B first.
        dropout: probability of dropping an element between layers, applied if `training`.
        lengths: [B] integers on any device, true length of each row, zero allowed: y is zero past them.
        reset_mask: bool [T, B] ([B, T] with batch_first), true where a new segment starts: no state crosses.
        coupled: True for input and forget gates that add up to one, f = 1 - i (CIFG, Greff et al. 2017): three gates
            i g o instead of four in each weight.
        peepholes: True for gates that see the cell state (Gers & Schmidhuber 2000): b_hh is [7*H], the biases and then
            the peepholes of i, f and o.
        recurrent_activation: "sigmoid", or "hard_sigmoid" for gates clip(x/6 + 1/2, 0, 1) (Keras 3).
        layer_norm: True normalises W x, R h and c (Ba et al. 2016): b_hh is [14*H], the shift of R h and its gains
            [4*H], gain and shift of c [H], and the gains of W x [4*H].
        zoneout: probability, or a pair for h and c, that a unit keeps the state of the step before (Krueger et al.
            2017); the expectation if not `training`.
        recurrent_dropout: probability of dropping a unit of h, for the whole sequence, where the recurrent product
            reads it (Gal & Ghahramani 2016), if `training`.
        candidate_dropout: probability of dropping a unit of the candidate g, so that a step leaves c to the forget gate
            there (Semeniuta et al. 2016), if `training`.
        candidate_dropout_per: "step" to draw these units anew at every step, "sequence" for the same ones.
        weight_dropout: probability of dropping an entry of w_hh for the whole sequence (DropConnect; Merity et al.
            2018), if `training`.
        input_dropout, output_dropout: probability of dropping a unit, for the whole sequence, of each layer's input and
            of the last layer's output (Gal & Ghahramani 2016), if `training`.
        seed: of all these: the same seed gives the same result on any backend; None draws one from torch's generator.
        checkpoint_every: forward keeps the states of every checkpoint_every-th step only, and backward computes the
            rest again, on CPUs with the same bits; 0 keeps everything.
        grad_clip: bound of the gradients of W x + b_ih and of R h + b_hh at every step (Graves 2013); 0 for none.
        detach_mask: bool, shaped like reset_mask, true where the state is kept and its gradient is cut.
        return_states, return_gates: True to return the states of every step as well, and the gates, as fastrnn.nn.LSTM
            does.
        num_heads: blocks on the diagonal of the recurrent matrix: w_hh is [4*H, H/num_heads], each row with the columns
            of its unit's own head; as in fastrnn.nn.LSTM.
        reset_to: "zero", or "initial": where reset_mask is true `state` enters, and gets a gradient from there.

    Returns:
        y [T, B, D*(P or H)] in the layout of x, and (h, c) shaped like `state`; then, if asked for, the states of every
        step.

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.
        ValueError: two of coupled, peepholes and hard_sigmoid, for which there is no cell.

    Example:
        >>> y, (h, c) = lstm(torch.ones(5, 2, 3), None, [torch.ones(16, 3), torch.ones(16, 4)])
    """
    cell = _checks.lstm_cell("lstm", coupled, peepholes, recurrent_activation, layer_norm)
    dropouts = (recurrent_dropout, weight_dropout, input_dropout, output_dropout, candidate_dropout)
    rates = _drawn("lstm", zoneout, dropouts, seed, training, candidate_dropout_per)
    backprop = backprop_of("lstm", checkpoint_every, grad_clip, detach_mask)
    stack = infer_stack(
        "lstm", cell, weights, bidirectional, batch_first, dropout, rates, backprop, num_heads, reset_to
    )
    return _run(stack, x, as_states("lstm", state), weights, training, lengths, reset_mask, return_states, return_gates)


def gru(
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
    reset_after: bool = True,
    recurrent_activation: str = "sigmoid",
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    candidate_dropout_per: str = "step",
    weight_dropout: float = 0.0,
    input_dropout: float = 0.0,
    output_dropout: float = 0.0,
    seed: int | None = None,
    checkpoint_every: int = 0,
    grad_clip: float = 0.0,
    detach_mask: Tensor | None = None,
    return_states: bool = False,
    return_gates: bool = False,
    layer_norm: bool = False,
    num_heads: int = 1,
    reset_to: str = "zero",
) -> tuple[Tensor | PackedSequence, Tensor]:
    """GRU (Cho et al. 2014) over whole sequences.

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [3*H, I], w_hh [3*H, H], b_ih, b_hh [3*H] (both or none); r z n.
        reset_after: True multiplies the recurrent product by the reset gate (torch, cuDNN); False multiplies h before
            the product, the form of the paper.
        recurrent_activation: "sigmoid" or "hard_sigmoid", as in lstm().
        layer_norm: True normalises W x and R h (Ba et al. 2016): b_hh is [9*H], shift and gains of R h, gains of W x.
        zoneout, recurrent_dropout, candidate_dropout, candidate_dropout_per, weight_dropout, input_dropout,
            output_dropout, seed, checkpoint_every, grad_clip, detach_mask, return_states, return_gates, num_heads,
            reset_to: as in lstm(); zoneout of h, and the candidate is n.

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H]; then, if asked for, the states of every step.

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = gru(torch.ones(5, 2, 3), None, [torch.ones(12, 3), torch.ones(12, 4)], reset_after=False)
    """
    cell = _checks.gru_cell("gru", reset_after, recurrent_activation, layer_norm)
    dropouts = (recurrent_dropout, weight_dropout, input_dropout, output_dropout, candidate_dropout)
    rates = _drawn("gru", (zoneout, 0.0), dropouts, seed, training, candidate_dropout_per)
    backprop = backprop_of("gru", checkpoint_every, grad_clip, detach_mask)
    stack = infer_stack("gru", cell, weights, bidirectional, batch_first, dropout, rates, backprop, num_heads, reset_to)
    states = as_single(stack.function, state)
    y, last, *more = _run(stack, x, states, weights, training, lengths, reset_mask, return_states, return_gates)
    return y, last[0], *more


def rnn(
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
    nonlinearity: str = "tanh",
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    input_dropout: float = 0.0,
    output_dropout: float = 0.0,
    seed: int | None = None,
    checkpoint_every: int = 0,
    grad_clip: float = 0.0,
    detach_mask: Tensor | None = None,
    return_states: bool = False,
    return_gates: bool = False,
    num_heads: int = 1,
    reset_to: str = "zero",
) -> tuple[Tensor | PackedSequence, Tensor]:
    """Simple recurrent network (Elman 1990) over whole sequences: h' = f(W x + b_ih + R h + b_hh).

    Args:
        x, lengths, reset_mask, dropout, bidirectional, batch_first: as in lstm().
        state: h0 [L*D, B, H]; None for zeros.
        weights: for each layer and direction w_ih [H, I], w_hh [H, H], b_ih, b_hh [H] (both or none).
        nonlinearity: "tanh", "relu" or "sigmoid".
        zoneout, recurrent_dropout, weight_dropout, input_dropout, output_dropout, seed, checkpoint_every, grad_clip,
            detach_mask, return_states, return_gates, num_heads, reset_to: as in lstm(); zoneout of h.

    Returns:
        y [T, B, D*H] in the layout of x, and h [L*D, B, H]; then, if asked for, the states of every step.

    Raises:
        ShapeError, DTypeError, DeviceError: naming function, argument, what it is and what is expected.

    Example:
        >>> y, h = rnn(torch.ones(5, 2, 3), None, [torch.ones(4, 3), torch.ones(4, 4)], nonlinearity="relu")
    """
    cell = f"rnn_{nonlinearity}"
    if cell not in CELLS:
        raise ValueError(f"rnn: nonlinearity is {nonlinearity!r}, expected 'tanh', 'relu' or 'sigmoid'")
    dropouts = (recurrent_dropout, weight_dropout, input_dropout, output_dropout, 0.0)
    rates = _drawn("rnn", (zoneout, 0.0), dropouts, seed, training)
    backprop = backprop_of("rnn", checkpoint_every, grad_clip, detach_mask)
    stack = infer_stack("rnn", cell, weights, bidirectional, batch_first, dropout, rates, backprop, num_heads, reset_to)
    states = as_single(stack.function, state)
    y, last, *more = _run(stack, x, states, weights, training, lengths, reset_mask, return_states, return_gates)
    return y, last[0], *more


def _drawn(
    function: str,
    zoneout: float | tuple[float, float],
    dropouts: tuple[float, ...],  # of the recurrence, of weights, of input and output, of the candidate
    seed: int | None,
    training: bool,
    candidate_per: str = "step",
) -> Rates | None:
    rates = rates_of(function, zoneout, *dropouts, candidate_per)
    return None if rates is None else rates.drawn(function, seed, training)


def _run(stack: Stack, *args: object) -> tuple:
    """y and the last states and, if one of the last two arguments says so, those of every step."""
    *args, states, gates = args
    return run_with_states(stack, gates, *args) if states or gates else run(stack, *args)
