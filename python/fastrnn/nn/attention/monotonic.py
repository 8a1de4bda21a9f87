"""Monotonic attention (Raffel et al. 2017, arXiv 1704.00784)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..._monotonic import MODES
from .base import Alignment, Attention
from .scores import Scope


class MonotonicAttention(Attention):
    """Attention that never goes back: each query goes on from the key where the one before stopped.

    score = g v / |v| . tanh(W_q query + W_m memory + b) + r, and each score's sigmoid is the probability of stopping
    there; see fastrnn.normalizers.monotonic. Train with mode "parallel" or "recursive" and with noise, which makes the
    scores large, then set `module.mode = "hard"`: each query attends to one key, or to none once the walk has passed
    the end.

    Args:
        query_size, memory_size, attention_size, score, scale: as in LuongAttention, or "additive", with weight_norm.
        mode: "parallel", "recursive" or "hard".
        noise: standard deviation of what is added to the scores in training.
        score_bias: where the learned scalar r (`score_bias`) starts; negative values make early training go far enough.
        temperature, dropout, device, dtype: as in AdditiveAttention.

    Example:
        >>> attention = MonotonicAttention(3, 4, 8)
        >>> context, weights = attention(torch.ones(2, 5, 3), torch.ones(2, 7, 4))
        >>> step, first = attention(torch.ones(2, 3), torch.ones(2, 7, 4), state=attention.start(torch.ones(2, 7, 4)))
        >>> torch.allclose(first, weights[:, 0])
        True
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int | None = None,
        attention_size: int | None = None,
        *,
        score: str = "additive",
        scale: float | str = 1.0,
        mode: str = "parallel",
        noise: float = 0.0,
        score_bias: float = 0.0,
        weight_norm: bool = True,
        temperature: float = 1.0,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"MonotonicAttention: mode is {mode!r}, expected one of {', '.join(map(repr, MODES))}")
        if not noise >= 0:
            raise ValueError(f"MonotonicAttention: noise is {noise!r}, expected a standard deviation of at least 0")
        options = {"scale": scale} | ({"weight_norm": weight_norm} if score == "additive" else {})
        super().__init__(
            query_size, memory_size, attention_size, score, "monotonic", temperature, dropout, device, dtype,
            options, mode=mode, noise=float(noise), _score_bias=float(score_bias),
        )  # fmt: skip

    def _make(self, device: Any, dtype: Any) -> None:
        super()._make(device, dtype)
        self.score_bias = Parameter(torch.empty((), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Initialises as Attention, and r as it was given."""
        super().reset_parameters()
        torch.nn.init.constant_(self.score_bias, self._score_bias)

    def start(self, memory: Tensor) -> Alignment:
        """The alignment before the first query: the walk stands at key 0."""
        self._check_memory(memory)
        nothing = memory.new_zeros(memory.shape[:2])
        first = (torch.arange(memory.shape[1], device=memory.device) == 0).to(nothing.dtype).expand_as(nothing)
        return Alignment(first, nothing)

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
        state = self._checked_state(state, memory)
        return self._combine(self._score.queries(self, query), keys, memory, scope, state)

    def _weights(self, scores: Tensor, scope: Scope, state: Alignment) -> Tensor:
        scores = scores + self.score_bias
        if self.training and self.noise:
            scores = scores + self.noise * torch.randn_like(scores)
        return super()._weights(scores, scope, mode=self.mode, previous=state.previous)
