"""Sequences from an attention decoder without a word from outside: `generate` (greedy or sampled) and `beam_search`.

Each is one call of the backend: embedding, step, vocabulary product and choice for every step, until each row has ended.
Nothing here has gradients.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backends, _checks
from ._decoder_checks import check_user
from ._memory import rows_in_place
from ._tensor_checks import as_lengths, check_integers
from .decoder import DecoderWeights, prepare

__all__ = ["BeamSearch", "Generated", "beam_search", "generate"]

_64 = (1 << 64) - 1
_COLDEST = 1e-30  # below, the temperature would be zero as a float32; the most probable token is drawn long before


class Generated(NamedTuple):
    """What generate() returns; L is the number of steps taken. Past the end of a row stand the end token and zeros."""

    tokens: Tensor  # [B, L] int64, with the end token
    lengths: Tensor  # [B] int64, tokens of each row, the end token included
    weights: Tensor  # [B, L, Tk], where each token's step attended
    log_probs: Tensor  # [B, L], of each token


class BeamSearch(NamedTuple):
    """What beam_search() returns, best first; past the end of a sequence stand the end token and zeros."""

    tokens: Tensor  # [B, N, L] int64, with the end token
    lengths: Tensor  # [B, N] int64
    scores: Tensor  # [B, N], log probability with the penalties; -inf where there is no N-th sequence
    log_probs: Tensor  # [B, N], of the whole sequence
    weights: Tensor  # [B, N, L, Tk]


class _Run(NamedTuple):
    """What a call of the backend leaves, by row = batch * beams + beam."""

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    weights: Tensor
    steps: Tensor
    ends: Tensor
    end_steps: Tensor
    end_rows: Tensor
    end_scores: Tensor


@torch.no_grad()
def generate(
    memory: Tensor,
    weights: DecoderWeights,
    embedding: Tensor,
    vocabulary: tuple[Tensor, Tensor | None],
    state: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    start: int | Tensor,
    end: int | None,
    max_length: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
    cell: str = "lstm",
    order: str = "luong",
    keys: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    feed: Tensor | None = None,
) -> Generated:
    """Generates a sequence for each row of the memory, in one call: the most probable token at each step, or a sample.

    Args:
        memory, weights, state, cell, order, keys, lengths, feed: as in functional.attention_decoder().
        embedding: [V, E], of the tokens.
        vocabulary: weight [V, H] and bias [V] or None of the product that turns outputs into logits.
        start: the token that enters the first step, one or [B].
        end: the token that ends a row, None for none.
        max_length: steps at most.
        temperature: 0 for the most probable token (of equal ones the first); above, tokens are drawn from
            softmax(logits / temperature).
        top_k: draw among that many most probable tokens.
        seed: of the drawing, an int of 64 bits; from torch's generator if absent. The same seed draws the same tokens
            for any number of threads.

    Returns:
        Generated. The log probabilities are those of softmax(logits), whatever temperature and top_k say.

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real) or not 0 <= temperature < math.inf:
        raise ValueError(f"generate: temperature is {temperature!r}, expected a number of at least 0")
    if top_k is not None:
        _at_least_one("generate", "top_k", top_k)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise _checks.type_error("generate", "seed", seed, "an int or None")
    if temperature and seed is None:
        seed = int(torch.randint(1 << 62, ()))
    temperature = max(float(temperature), _COLDEST) if temperature else 0.0
    found, L = _run(
        "generate", memory, weights, embedding, vocabulary, state, start, end, max_length, 1, False,
        (temperature, top_k or 0, (seed or 0) & _64), (cell, order, keys, lengths, feed),
    )  # fmt: skip
    dtype = memory.dtype
    return Generated(
        found.tokens[:, :L], found.steps, found.weights[:, :L].to(dtype), found.scores[:, :L].to(dtype)
    )  # fmt: skip


@torch.no_grad()
def beam_search(
    memory: Tensor,
    weights: DecoderWeights,
    embedding: Tensor,
    vocabulary: tuple[Tensor, Tensor | None],
    state: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    start: int | Tensor,
    end: int,
    max_length: int,
    beams: int = 5,
    n_best: int = 1,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    cell: str = "lstm",
    order: str = "luong",
    keys: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    feed: Tensor | None = None,
) -> BeamSearch:
    """The most probable sequences that a beam finds, scored as in Wu et al. (2016, arXiv 1609.08144, section 7).

    At each step the beam keeps the `beams` best continuations that do not end; those among the best that end are put
    aside, and a row is done when `beams` of them have been. What has ended, and at max_length what is still in the
    beam, is ranked by

        log P(Y) / ((5 + |Y|) / 6)^length_penalty + coverage_penalty * sum over k of log min(1, sum over t of w[t, k])

    where w are the weights of attention, |Y| counts the end token and k runs over the memory that is real. All beams
    of a row read one memory.

    Args:
        memory to feed: as in generate().
        end: the token that ends a sequence.
        beams: sequences kept.
        n_best: sequences returned, at most `beams`.
        length_penalty, coverage_penalty: alpha and beta of the article, at least 0.

    Returns:
        BeamSearch.

    Raises:
        ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.
    """
    _at_least_one("beam_search", "beams", beams)
    _at_least_one("beam_search", "n_best", n_best)
    if n_best > beams:
        raise ValueError(f"beam_search: n_best is {n_best}, expected at most beams = {beams}")
    for name, value in (("length_penalty", length_penalty), ("coverage_penalty", coverage_penalty)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
            raise ValueError(f"beam_search: {name} is {value!r}, expected a number of at least 0")
    if end is None:
        raise _checks.type_error("beam_search", "end", end, "an int")
    found, L = _run(
        "beam_search", memory, weights, embedding, vocabulary, state, start, end, max_length, beams, True, (0.0, 0, 0),
        (cell, order, keys, lengths, feed),
    )  # fmt: skip
    sequences = _trace_back(found, beams, end, max_length, L)
    real = None if lengths is None else as_lengths("beam_search", lengths, len(memory), memory, "memory")
    best = _rank(sequences, float(length_penalty), float(coverage_penalty), real, n_best)
    dtype = memory.dtype
    return BeamSearch(best.tokens, best.lengths, *(t.to(dtype) for t in best[2:]))


def _trace_back(found: _Run, beams: int, end: int, max_length: int, L: int) -> BeamSearch:
    """Every sequence that ended, then those that max_length cut short, from the links between rows."""
    B, Tk = found.steps.shape[0], found.weights.shape[2]
    device = found.steps.device
    alive = torch.arange(B * beams, device=device).view(B, beams)
    last = (found.steps - 1).clamp(min=0)
    cut = (found.steps == max_length) & (found.ends < beams)
    ended = torch.arange(2 * beams, device=device) < found.ends[:, None]
    row = torch.cat([found.end_rows, alive], 1)
    step = torch.cat([found.end_steps, last[:, None].expand(B, beams)], 1)
    log_prob = torch.cat([found.end_scores, found.scores[alive, last[:, None]]], 1)
    exists = torch.cat([ended, cut[:, None].expand(B, beams)], 1) & (log_prob > -math.inf)
    row, step = row.masked_fill(~exists, 0), step.masked_fill(~exists, -1)
    closes = torch.cat([torch.ones_like(ended), torch.zeros_like(alive, dtype=torch.bool)], 1)
    tokens = torch.full((*row.shape, L), end, dtype=torch.int64, device=device)
    shares = found.weights.new_zeros(*row.shape, L, Tk)
    for t in range(L - 1, -1, -1):
        inside, closing = step >= t, closes & (step == t)
        before = torch.where(closing, row, found.parents[row, t])
        tokens[..., t] = torch.where(inside & ~closing, found.tokens[row, t], end)
        shares[:, :, t] = torch.where(inside[..., None], found.weights[before, t], 0)
        row = torch.where(inside, before, row)
    log_prob = log_prob.masked_fill(~exists, -math.inf)
    return BeamSearch(tokens, step + 1, log_prob, log_prob, shares)


def _rank(s: BeamSearch, alpha: float, beta: float, lengths: Tensor | None, n_best: int) -> BeamSearch:
    scores = s.log_probs / ((5 + s.lengths.to(s.log_probs.dtype)) / 6) ** alpha
    if beta:
        covered = s.weights.sum(2).clamp(torch.finfo(s.weights.dtype).tiny, 1).log()
        if lengths is not None:
            real = torch.arange(covered.shape[-1], device=covered.device) < lengths[:, None, None]
            covered = covered.masked_fill(~real, 0)
        scores = scores + beta * covered.sum(-1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    order, scores = order[:, :n_best], scores[:, :n_best]
    rows = torch.arange(order.shape[0], device=order.device)[:, None]
    return BeamSearch(s.tokens[rows, order], s.lengths[rows, order], scores, s.log_probs[rows, order],
                      s.weights[rows, order])  # fmt: skip


def _at_least_one(function: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 63:
        raise ValueError(f"{function}: {name} is {value!r}, expected an int of at least 1")


def _token(function: str, name: str, token: object, V: int) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < V:
        raise ValueError(f"{function}: {name} is {token!r}, expected a token in [0, {V})")


def _first_tokens(function: str, start: object, B: int, V: int, device: torch.device) -> Tensor:
    if not isinstance(start, Tensor):
        _token(function, "start", start, V)
        return torch.full((B,), start, dtype=torch.int64, device=device)
    check_integers(function, "start", start)
    if start.device != device:
        raise _checks.device_error(function, "start", start.device, f"{device} (the device of memory)")
    _checks.check_shape(function, "start", start.shape, "(B,)", (B,))
    if B:
        for bound in start.aminmax():
            _token(function, "start", int(bound), V)
    return start.to(torch.int64).contiguous()


def _check_vocabulary(function: str, embedding: object, vocabulary: object, weights: DecoderWeights):
    """E and V."""
    if not isinstance(vocabulary, (tuple, list)) or len(vocabulary) != 2:
        raise _checks.type_error(function, "vocabulary", vocabulary, "a pair (weight, bias)")
    weight, bias = vocabulary
    like = weights.weight_ih
    named = [("embedding", embedding, "(V, E)"), ("vocabulary weight", weight, "(V, H)")]
    for name, t, symbols in named + ([] if bias is None else [("vocabulary bias", bias, "(V)")]):
        if not isinstance(t, Tensor):
            raise _checks.type_error(function, name, t, "a torch.Tensor")
        if t.dtype is not like.dtype:
            raise _checks.dtype_error(function, name, t.dtype, f"{like.dtype} (the dtype of weight_ih)")
        if t.device != like.device:
            raise _checks.device_error(function, name, t.device, f"{like.device} (the device of weight_ih)")
        _checks.check_rank(function, name, t.shape, symbols)
    (V, E), H = embedding.shape, weights.weight_hh.shape[1]
    _checks.check_size(function, "embedding", "V", V)
    _checks.check_shape(function, "vocabulary weight", weight.shape, "(V, H)", (V, H))
    if bias is not None:
        _checks.check_shape(function, "vocabulary bias", bias.shape, "(V,)", (V,))
    return E, V


def _run(
    function, memory, weights, embedding, vocabulary, state, start, end, max_length, beams, search, sampling, options
):
    """Checks, runs, and returns what the backend found and the number of steps taken."""
    cell, order, keys, lengths, feed = options
    for name, t in (("memory", memory), ("embedding", embedding), ("weight_ih", getattr(weights, "weight_ih", None))):
        if not isinstance(t, Tensor):
            raise _checks.type_error(function, name, t, "a torch.Tensor")
    _checks.check_rank(function, "memory", memory.shape, "(B, Tk, M)")
    _checks.check_rank(function, "embedding", embedding.shape, "(V, E)")
    _at_least_one(function, "max_length", max_length)
    E, V = _check_vocabulary(function, embedding, vocabulary, weights)
    B, Tk, _ = memory.shape
    first = _first_tokens(function, start, B, V, memory.device)
    if end is not None:
        _token(function, "end", end, V)

    def wide(t):
        return t.float() if isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float16) else t

    states = tuple(map(wide, state)) if isinstance(state, (tuple, list)) else wide(state)
    if isinstance(weights, tuple):
        weights = DecoderWeights(*map(wide, weights))
    memory, keys, feed, embedding = wide(memory), wide(keys), wide(feed), wide(embedding)
    nothing = memory.new_empty(B, 0, E)
    check_user(nothing, memory, weights, cell, order, DecoderWeights._fields)
    with torch.autocast(memory.device.type, enabled=False):
        arguments = prepare(nothing, memory, weights, states, cell, order, keys, lengths, feed)
    w_input, distance = rows_in_place(function, "weight_ih", weights.weight_ih[:, :E])
    given = [embedding, w_input, weights.bias_ih, *map(wide, vocabulary)]
    given = [t if t is None or t is w_input else t.contiguous() for t in given] + [first]
    rows, integers = B * beams, {"dtype": torch.int64, "device": memory.device}
    found = _Run(
        first.new_full((rows, max_length), 0 if end is None else end),
        first.new_zeros((rows, max_length) if search else (0, 0)),
        memory.new_zeros(rows, max_length),
        memory.new_zeros(rows, max_length, Tk),
        torch.zeros(B, **integers),
        torch.zeros(B, **integers),
        torch.zeros(B, 2 * beams, **integers),
        torch.zeros(B, 2 * beams, **integers),
        memory.new_zeros(B, 2 * beams),
    )
    temperature, top_k, seed = sampling
    if B:
        sizes = (E, V, beams, -1 if end is None else end, min(top_k, V), distance)
        _backends.decoder_of(memory).generate(arguments, max_length, sizes, (temperature, seed), given, found)
    return found, int(found.steps.max()) if B else 0
