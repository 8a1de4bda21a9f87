"""What the attention modules share: checks, projections, and the way from scores to a context.

    weights = normalise(score(query, key) / temperature + bias)        context = weights @ memory

With the softmax that is one call of a fused function; any other normaliser gets the scores, and a product follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import dropout

from ... import _checks, normalizers
from ..._attention_masks import as_bias, as_mask, check_temperature, cleared, hidden_keys, valid_keys
from ..._tensor_checks import (
    as_lengths,
    autocast_dtype,
    check_floats,
    check_lengths_within,
    check_like,
    check_memory,
    is_plain,
)
from .scores import Scope, Score, make_score


class Alignment(NamedTuple):
    """What an attention that looks back carries from one query to the next."""

    previous: Tensor  # [B, Tk], the weights of the query before
    cumulative: Tensor  # [B, Tk], the sum of those of all queries before

    def after(self, weights: Tensor) -> Alignment:
        """The alignment after one more query with these weights [B, Tk]."""
        return Alignment(weights, self.cumulative + weights)


class Attention(Module):
    """A score, a normaliser, and the call; see AdditiveAttention for the arguments."""

    def __init__(
        self,
        query_size: int,
        memory_size: int | None,
        attention_size: int | None,
        score: str,
        normalizer: str | Callable[..., Tensor],
        temperature: float,
        dropout: float,
        device: Any,
        dtype: Any,
        score_options: dict[str, Any],
        **attributes: Any,
    ) -> None:
        """attributes: what the subclass needs before the parameters are made."""
        super().__init__()
        name = type(self).__name__
        self.score = score
        self._score: Score = make_score(name, score, **score_options)
        memory_size = query_size if memory_size is None else memory_size
        sizes = {"query_size": query_size, "memory_size": memory_size}
        if score in ("additive", "concat"):
            sizes["attention_size"] = query_size if attention_size is None else attention_size
        elif attention_size is not None:
            raise ValueError(f"{name}: attention_size is {attention_size!r}, expected None with the score {score!r}")
        for argument, size in sizes.items():
            check_positive(name, argument, size)
            setattr(self, argument, size)
        if score in ("dot", "cosine") and memory_size != query_size:
            raise ValueError(f"{name}: memory_size is {memory_size}, expected query_size = {query_size} for {score!r}")
        check_temperature(name, temperature)
        _checks.check_probability(name, "dropout", dropout)
        normalizers.get(normalizer, name)
        self.normalizer, self.temperature, self.dropout = normalizer, float(temperature), float(dropout)
        for attribute, value in attributes.items():
            setattr(self, attribute, value)
        self._make(device, dtype)
        self.reset_parameters()

    def _make(self, device: Any, dtype: Any) -> None:
        """Adds the parameters."""
        self._score.make(self, device, dtype)

    def reset_parameters(self) -> None:
        """Initialises projections as torch.nn.Linear does, v uniformly in +-1/sqrt(attention_size), a learned scale as 1."""
        self._score.reset(self)

    def precompute(self, memory: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """The keys [B, Tk, D], for a decoder that attends to the same memory many times.

        Args:
            memory: [B, Tk, memory_size].
            lengths: [B] integers; what lies past them then reaches no gradient, NaN included.
        """
        self._check_memory(memory)
        if lengths is not None:
            lengths = as_lengths(type(self).__name__, lengths, memory.shape[0], memory, "memory", memory.shape[1])
        return self._keys(memory, Scope(lengths))

    def _keys(self, memory: Tensor, scope: Scope) -> Tensor:
        if self._score.projects:
            memory = cleared(memory, self._hidden(scope, memory.shape[1]))
        return self._score.keys(self, memory)

    def _hidden(self, scope: Scope, Tk: int) -> Tensor | None:
        """Bool [B, Tk], true for a key that no query sees; None if the scope leaves out nothing."""
        hidden = hidden_keys(scope.mask, scope.bias)
        if scope.lengths is None:
            return hidden
        padding = ~valid_keys(type(self).__name__, scope.lengths, Tk)
        return padding if hidden is None else hidden | padding

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends.

        Args:
            query: [B, Tq, query_size], or [B, query_size] for one step.
            memory: [B, Tk, memory_size].
            lengths: [B] integers in [0, Tk], how much of each memory is real.
            mask: bool [B, Tq, Tk] or broadcast to it ([B, Tk] for one step), true where a key may be attended.
            bias: added to the scores, shaped like mask; -inf is a mask.
            keys: precompute(memory), computed here when absent.

        Returns:
            context [B, Tq, memory_size] and weights [B, Tq, Tk]; without Tq for one step. Zeros for a query that may
            attend to nothing, which gives zero gradients.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        return self._run(query, memory, Scope(lengths, mask, bias), keys)

    def _run(self, query: Tensor, memory: Tensor, scope: Scope, keys: Tensor | None, **call: Any) -> Any:
        """One step or many; `call` is what the module's own _attend() takes besides."""
        name = type(self).__name__
        self._check_floats("query", query)
        one = query.ndim == 2
        if one:
            query = query.unsqueeze(1)
            if scope.mask is not None or scope.bias is not None:
                scope = scope._replace(mask=_for_step(scope.mask), bias=_for_step(scope.bias))
        _checks.check_rank(name, "query", query.shape, "(B, Tq, query_size)", " or (B, query_size)")
        self._check_memory(memory)
        self._check_like("memory", memory, query, "query")
        (B, Tk, _), Tq = memory.shape, query.shape[1]
        _checks.check_shape(name, "query", query.shape, "(B, Tq, query_size)", (B, Tq, self.query_size))
        scope = self._checked_scope(scope, (B, Tq, Tk), memory)
        if keys is None:
            keys = self._keys(memory, scope)
        else:
            self._check_like("keys", keys, memory, "memory")
            check_memory(name, "keys", keys)
        _checks.check_shape(name, "keys", keys.shape, "(B, Tk, D)", (B, Tk, self._score.key_size(self)))
        if not self._fused():
            hidden = self._hidden(scope, Tk)
            keys, memory = cleared(keys, hidden), cleared(memory, hidden)
        context, weights = self._attend(query, keys, memory, scope, **call)
        return (context.squeeze(1), weights.squeeze(-2)) if one else (context, weights)

    def _checked_scope(self, scope: Scope, shape: tuple[int, int, int], memory: Tensor) -> Scope:
        """Lengths as a tensor, mask and bias [B, Tq, Tk]."""
        lengths, mask, bias, _ = scope
        if lengths is None and mask is None and bias is None:
            return scope
        name, symbols = type(self).__name__, "(B, Tq, Tk)"
        if lengths is not None:
            lengths = as_lengths(name, lengths, shape[0], memory, "memory", shape[2])
            check_lengths_within(name, lengths, shape[2])
        return Scope(
            lengths,
            None if mask is None else as_mask(name, mask, symbols, shape, memory, "memory"),
            None if bias is None else as_bias(name, bias, symbols, shape, memory, "memory"),
        )

    def _checked_state(self, state: Alignment | None, memory: Tensor) -> Alignment:
        """The alignment before this call; that of start() for None."""
        if state is None:
            return self.start(memory)
        name = type(self).__name__
        if not isinstance(state, Alignment):
            raise _checks.type_error(name, "state", state, "an Alignment, from start() or after()")
        for part, t in state._asdict().items():
            check_like(name, f"state.{part}", t, memory, "memory")
            check_memory(name, f"state.{part}", t)
            _checks.check_shape(name, f"state.{part}", t.shape, "(B, Tk)", memory.shape[:2])
        return state

    def _check_memory(self, memory: Tensor) -> None:
        self._check_floats("memory", memory)
        shape, name, symbols = memory.shape, type(self).__name__, "(B, Tk, memory_size)"
        if len(shape) != 3 or shape[2] != self.memory_size:
            _checks.check_rank(name, "memory", shape, symbols)
            _checks.check_shape(name, "memory", shape, symbols, (*shape[:2], self.memory_size))

    def _check_floats(self, argument: str, t: Tensor) -> None:
        """Raises unless t is a tensor that the parameters can be applied to."""
        weight = next(iter(self._parameters.values()), None)  # parameters() takes ten times as long
        if weight is None:
            weight = next(self.parameters(), None)
        if weight is not None:
            self._check_like(argument, t, weight, "the parameters")
        else:
            check_floats(type(self).__name__, argument, t)
        check_memory(type(self).__name__, argument, t)

    def _check_like(self, argument: str, t: Tensor, other: Tensor, other_name: str) -> None:
        """Raises unless t can be computed with another tensor that has been checked, or is cast as autocast casts that."""
        if is_plain(t, other):
            return
        check_floats(type(self).__name__, argument, t)
        if autocast_dtype(t) is None:
            check_like(type(self).__name__, argument, t, other, other_name)

    def _fused(self) -> bool:
        """Whether _combine() calls a fused function, in which hidden keys are taken care of."""
        return self.normalizer == "softmax" and not (self.training and self.dropout > 0)

    def _attend(self, query: Tensor, keys: Tensor, memory: Tensor, scope: Scope) -> tuple[Tensor, Tensor]:
        return self._combine(self._score.queries(self, query), keys, memory, scope)

    def _combine(self, q: Tensor, k: Tensor, value: Tensor, scope: Scope, *state: Any) -> tuple[Tensor, Tensor]:
        """From projected queries and keys to context and weights; `state` goes to _weights()."""
        heads = self._score.num_heads
        if heads == 1:
            return self._combine_head(0, q, k, value, scope, *state)
        parts = zip(*(t.chunk(heads, -1) for t in (q, k, value)))
        found = [self._combine_head(head, *own, scope, *state) for head, own in enumerate(parts)]
        contexts, weights = zip(*found)
        return torch.cat(contexts, -1), torch.stack(weights, 1)

    def _combine_head(
        self, head: int, q: Tensor, k: Tensor, value: Tensor, scope: Scope, *state: Any
    ) -> tuple[Tensor, Tensor]:
        if self._fused():
            return self._score.attend(self, q, k, value, scope, head)
        weights = self._weights(self._score.scores(self, q, k, head), scope, *state)
        if scope.factor is not None:
            weights = weights * scope.factor
        weights = dropout(weights, self.dropout, self.training and self.dropout > 0)
        return weights.to(value.dtype) @ value, weights

    def _weights(self, scores: Tensor, scope: Scope, **options: Any) -> Tensor:
        scores = scores / self.temperature if self.temperature != 1 else scores
        if scope.bias is not None:
            scores = scores + scope.bias.to(scores.dtype)
        normalize = normalizers.get(self.normalizer, type(self).__name__)
        return normalize(scores, lengths=scope.lengths, mask=scope.mask, **options)

    def extra_repr(self) -> str:
        """The sizes, and the options that are not the default."""
        sizes = [str(getattr(self, n)) for n in ("query_size", "memory_size", "attention_size") if hasattr(self, n)]
        options = [f"score={self.score!r}"] if self.score != "additive" else []
        if self._score.num_heads > 1:
            options.append(f"num_heads={self._score.num_heads}")
        if self.normalizer != "softmax":
            options.append(f"normalizer={self.normalizer!r}")
        if self.temperature != 1:
            options.append(f"temperature={self.temperature}")
        if self.dropout:
            options.append(f"dropout={self.dropout}")
        return ", ".join(sizes + options)


def check_positive(function: str, argument: str, size: object) -> None:
    """Raises ValueError unless size is an int of at least 1."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{function}: {argument} is {size!r}, expected an int of at least 1")


def _for_step(t: Any) -> Any:
    """A mask or bias [B, Tk] of one step as [B, 1, Tk]."""
    return t.unsqueeze(1) if isinstance(t, Tensor) and t.ndim == 2 else t
