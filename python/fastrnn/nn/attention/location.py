"""Attention that sees where it has been: location-sensitive (Chorowski et al. 2015, arXiv 1506.07503), coverage (See et
al. 2017, arXiv 1704.04368)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv1d, Linear

from .base import Alignment, Attention, check_positive
from .scores import Scope

_CHANNELS = {"previous": 1, "cumulative": 1, "both": 2, None: 0}


class LocationSensitiveAttention(Attention):
    """Additive attention whose score also sees the weights of the queries before.

        score[k] = v . tanh(W_q query + W_m memory[k] + b + U f[k] + w_c c[k])

    f is a convolution of earlier weights over k, c[k] (coverage) the sum of all earlier weights of key k. Since each
    query needs the weights of the one before, many queries are done one after the other.

    Args:
        query_size, memory_size, attention_size, bias, device, dtype: as in AdditiveAttention.
        location: what is convolved: "previous" weights (Chorowski et al.), the "cumulative" sum, "both" (Tacotron 2's
            two channels), or None.
        filters, kernel_size: of the convolution `location_conv`, without a bias; kernel_size is odd. `location_layer`
            is U.
        coverage: True for the term with c and `coverage_layer` (w_c), See et al. 2017.
        weight_norm, normalizer, temperature, dropout: as in AdditiveAttention.

    Example:
        >>> attention = LocationSensitiveAttention(3, 4, 8)
        >>> memory = torch.ones(2, 7, 4)
        >>> state, keys = attention.start(memory), attention.precompute(memory)
        >>> context, weights = attention(torch.ones(2, 3), memory, state=state, keys=keys)
        >>> state = state.after(weights)
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int,
        bias: bool = True,
        *,
        location: str | None = "both",
        filters: int = 32,
        kernel_size: int = 31,
        coverage: bool = False,
        weight_norm: bool = False,
        normalizer: str | Callable[..., Tensor] = "softmax",
        temperature: float = 1.0,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        name = "LocationSensitiveAttention"
        if location not in _CHANNELS:
            raise ValueError(f"{name}: location is {location!r}, expected 'previous', 'cumulative', 'both' or None")
        if location is None and not coverage:
            raise ValueError(f"{name}: location is None without coverage, expected one of them; or AdditiveAttention")
        for argument, size in (("filters", filters), ("kernel_size", kernel_size), ("attention_size", attention_size)):
            check_positive(name, argument, size)
        if kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size is {kernel_size}, expected an odd number")
        super().__init__(
            query_size, memory_size, attention_size, "additive", normalizer, temperature, dropout, device, dtype,
            {"bias": bias, "weight_norm": weight_norm},
            location=location, filters=filters, kernel_size=kernel_size, coverage=bool(coverage),
        )  # fmt: skip

    def _make(self, device: Any, dtype: Any) -> None:
        super()._make(device, dtype)
        options = {"bias": False, "device": device, "dtype": dtype}
        if self.location is not None:
            padding = (self.kernel_size - 1) // 2
            self.location_conv = Conv1d(
                _CHANNELS[self.location], self.filters, self.kernel_size, padding=padding, **options
            )  # fmt: skip
            self.location_layer = Linear(self.filters, self.attention_size, **options)
        if self.coverage:
            self.coverage_layer = Linear(1, self.attention_size, **options)

    def reset_parameters(self) -> None:
        """Initialises as Attention; the convolution and its projections as torch.nn's."""
        super().reset_parameters()
        for name in ("location_conv", "location_layer", "coverage_layer"):
            if hasattr(self, name):
                getattr(self, name).reset_parameters()

    def start(self, memory: Tensor) -> Alignment:
        """The alignment before the first query: nothing has been attended to."""
        self._check_memory(memory)
        nothing = memory.new_zeros(memory.shape[:2])
        return Alignment(nothing, nothing)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        *,
        state: Alignment | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends; see AdditiveAttention for the other arguments and the result.

        Args:
            state: from start(), then state.after(weights) for each step; None for start().
        """
        return self._run(query, memory, Scope(lengths, mask, bias), keys, state=state)

    def _attend(
        self, query: Tensor, keys: Tensor, memory: Tensor, scope: Scope, state: Alignment | None
    ) -> tuple[Tensor, Tensor]:
        state, found = self._checked_state(state, memory), []
        whole = (query.shape[0], query.shape[1], memory.shape[1])
        masks, biases = ([None] * whole[1] if t is None else t.unbind(1) for t in (scope.mask, scope.bias))
        for q, mask, bias in zip(self._score.queries(self, query).unbind(1), masks, biases):
            now = scope._replace(mask=_row(mask), bias=_row(bias))
            context, weights = self._combine(_row(q), keys + self._features(state), memory, now)
            found.append((context, weights))
            state = state.after(weights.squeeze(1))
        if not found:
            return memory.new_zeros(whole[0], 0, memory.shape[2]), memory.new_zeros(whole)
        return tuple(torch.cat(rows, 1) for rows in zip(*found))

    def _features(self, state: Alignment) -> Tensor | int:
        """What the earlier weights add to the keys, [B, Tk, D]."""
        total = 0
        if not state.previous.shape[1]:  # no keys, which a convolution does not take
            return total
        if self.location is not None:
            pair = {"previous": state[:1], "cumulative": state[1:], "both": state[:2]}[self.location]
            total = self.location_layer(self.location_conv(torch.stack(tuple(pair), 1)).transpose(1, 2))
        if self.coverage:
            total = total + self.coverage_layer(state.cumulative.unsqueeze(-1))
        return total


def _row(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.unsqueeze(1)
