"""Attention and the attention decoder."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from .cells import CELLS, State


def additive_scores(query: Tensor, key: Tensor, v: Tensor, activation: str = "tanh") -> Tensor:
    """Bahdanau et al. 2015: sum over d of v[d] f(query[q, d] + key[k, d]), f tanh or relu."""
    return (getattr(torch, activation)(query.unsqueeze(2) + key.unsqueeze(1)) * v).sum(-1)


def dot_scores(query: Tensor, key: Tensor, v: None = None) -> Tensor:
    """Luong et al. 2015: query[q] . key[k]."""
    return query @ key.transpose(1, 2)


SCORES: dict[str, Callable[..., Tensor]] = {
    "additive": additive_scores,
    "additive_relu": functools.partial(additive_scores, activation="relu"),
    "dot": dot_scores,
}


def attention(
    score: str,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    v: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Attention: softmax over k of scale * score(query[q], key[k]) + bias, and the weighted sum of the values.

    Args:
        score: a name in SCORES.
        query, key, value: [B, Tq, D], [B, Tk, D], [B, Tk, Dv]; value None for the raw scores.
        v: [D], for the additive scores.
        lengths: [B] integers, how many keys are real.
        mask: bool [B, Tq, Tk], true where a key may be attended.
        bias: [B, Tq, Tk] or broadcast to it.
        scale: what scores are multiplied by.

    Returns:
        context [B, Tq, Dv] and weights [B, Tq, Tk]; zeros for a query that may attend to nothing. Without value
        nothing, and the raw scores.
    """
    if value is None:
        return query.new_empty(0), SCORES[score](query, key, v)
    pairs = (key.shape[0], query.shape[1], key.shape[1])
    keep = torch.ones(pairs, dtype=torch.bool, device=key.device) if mask is None else mask.expand(pairs)
    if bias is not None:
        keep = keep & (bias != -float("inf"))
    if lengths is not None:
        keep = keep & (torch.arange(key.shape[1], device=key.device) < lengths[:, None]).unsqueeze(1)
    hidden = ~keep.any(1).unsqueeze(-1)  # from every query: NaN there times a weight of zero would be NaN
    key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    scores = SCORES[score](query, key, v)
    logits = scores * scale if bias is None else scores * scale + bias
    if bias is not None:
        keep = keep & (logits != -float("inf"))
    weights = logits.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~keep, 0)
    return weights @ value, weights


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """attention() with the additive score."""
    return attention("additive", query, key, value, v, lengths, mask)


def attention_decoder(
    cell: str,
    bahdanau: bool,
    gates: Tensor,
    memory: Tensor,
    keys: Tensor,
    lengths: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    feed0: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_feed: Tensor | None,
    w_query: Tensor | None,
    v: Tensor | None,
    w_context: Tensor | None,
    w_hidden: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """A recurrent cell that attends to a memory at each step, in the order of Luong et al. (2015, arXiv 1508.04025) or
    of Bahdanau et al. (2015, arXiv 1409.0473).

    Args:
        cell: "lstm" or "gru".
        gates: [B, T, G*H], the input part of the gates: W x + b_ih.
        memory, keys: [B, Tk, M], [B, Tk, A].
        lengths: [B] integers, how many keys are real.
        h0, c0: [B, H]; c0 for the LSTM.
        feed0: [B, H], h~ before the first step, in Luong's order with w_feed.
        w_hh, b_hh: [G*H, H], [G*H].
        w_feed: [G*H, M] in Bahdanau's order; [G*H, H] or None in Luong's.
        w_query, v: [A, H], [A] for the additive score; None for the dot product with h itself.
        w_context, w_hidden: [H, M], [H, H] in Luong's order.

    Returns:
        outputs [B, T, H], weights [B, T, Tk] and the last state (h, and c of an LSTM).
    """
    state: State = (h0,) if c0 is None else (h0, c0)
    feed, outputs, shares = feed0, [], []

    def attend(h: Tensor) -> Tensor:
        query = (h if w_query is None else linear(h, w_query)).unsqueeze(1)
        context, weights = attention("dot" if v is None else "additive", query, keys, memory, v, lengths)
        shares.append(weights.squeeze(1))
        return context.squeeze(1)

    for t in range(gates.shape[1]):
        x = gates[:, t]
        if bahdanau:
            x = x + linear(attend(state[0]), w_feed)
        elif w_feed is not None:
            x = x + linear(feed, w_feed)
        state = CELLS[cell](x, state, w_hh, b_hh)
        feed = state[0]
        if not bahdanau:
            feed = (linear(attend(state[0]), w_context) + linear(state[0], w_hidden)).tanh()
        outputs.append(feed)
    if not outputs:
        return gates.new_empty(*gates.shape[:2], h0.shape[1]), gates.new_empty(*gates.shape[:2], keys.shape[1]), state
    return torch.stack(outputs, 1), torch.stack(shares, 1), state
