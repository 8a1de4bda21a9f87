"""Attention to a window of the memory (Luong et al. 2015, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from ... import _checks, scopes
from ..._tensor_checks import check_integers
from .base import Attention, check_positive
from .scores import Scope


class LocalAttention(Attention):
    """Luong's local attention: keys within `window` of a position p, that of the query itself or a predicted one.

        local-m  p = t                                          weights = softmax over |k - p| <= D
        local-p  p = S sigmoid(v_p . tanh(W_p query))           weights as above, times exp(-(k - p)^2 / (2 (D/2)^2))

    S is the length of the row's memory, D the window; positions count from zero.

    Args:
        query_size, memory_size, score, scale, attention_size: as in LuongAttention; "additive" works too.
        window: D, at least 1.
        predictive: True for local-p, which has the parameters position_layer.weight (W_p) and v_position (v_p).
        renormalize: True makes the Gaussian part of the scores of local-p, so that weights sum to one and the fused
            function does all of it; False multiplies the weights by it, as the paper.
        normalizer, temperature, dropout, device, dtype: as in AdditiveAttention.

    Example:
        >>> context, weights = LocalAttention(4, window=2)(torch.ones(1, 9, 4), torch.ones(1, 9, 4))
        >>> (weights[0, 4] > 0).int().tolist()
        [0, 0, 1, 1, 1, 1, 1, 0, 0]
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int | None = None,
        *,
        window: int,
        score: str = "dot",
        scale: float | str = 1.0,
        predictive: bool = False,
        renormalize: bool = False,
        attention_size: int | None = None,
        normalizer: str | Callable[..., Tensor] = "softmax",
        temperature: float = 1.0,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_positive("LocalAttention", "window", window)
        super().__init__(
            query_size, memory_size, attention_size, score, normalizer, temperature, dropout, device, dtype,
            {"scale": scale}, window=window, predictive=bool(predictive), renormalize=bool(renormalize),
        )  # fmt: skip

    def _make(self, device: Any, dtype: Any) -> None:
        super()._make(device, dtype)
        if self.predictive:
            width = self.query_size
            self.position_layer = Linear(width, width, bias=False, device=device, dtype=dtype)
            self.v_position = Parameter(torch.empty(width, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Initialises as Attention; W_p as torch.nn.Linear, v_p uniformly in +-1/sqrt(query_size)."""
        super().reset_parameters()
        if self.predictive:
            self.position_layer.reset_parameters()
            bound = 1 / math.sqrt(self.query_size)
            torch.nn.init.uniform_(self.v_position, -bound, bound)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        *,
        position: Tensor | int | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends; see AdditiveAttention for the other arguments and the result.

        Args:
            position: t of the first query, an int or integers [B]; 0 if None. Not with predictive=True, which needs
                none.

        Raises:
            ValueError: the window is larger than the memory; no position for one step without predictive=True.
        """
        if self.predictive and position is not None:
            raise ValueError(f"LocalAttention: position is {position!r}, expected None with predictive=True")
        if not self.predictive and position is None and isinstance(query, Tensor) and query.ndim == 2:
            raise ValueError("LocalAttention: position is None, expected that of the step for a query (B, query_size)")
        return self._run(query, memory, Scope(lengths, mask, bias), keys, position=position)

    def _attend(
        self, query: Tensor, keys: Tensor, memory: Tensor, scope: Scope, position: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        Tk = memory.shape[1]
        center = self._center(query, Tk, scope.lengths, position)
        near = scopes.local_window(center, Tk, self.window)
        scope = scope._replace(mask=near if scope.mask is None else near & scope.mask)
        if self.predictive:
            bell = scopes.local_gaussian(center, Tk, self.window).to(query.dtype)
            if self.renormalize:
                scope = scope._replace(bias=bell if scope.bias is None else bell + scope.bias)
            else:
                scope = scope._replace(factor=bell.exp())
        return self._combine(self._score.queries(self, query), keys, memory, scope)

    def _fused(self) -> bool:
        return super()._fused() and not (self.predictive and not self.renormalize)

    def _center(self, query: Tensor, Tk: int, lengths: Tensor | None, position: Tensor | int | None) -> Tensor:
        """p [B, Tq]."""
        B, Tq = query.shape[:2]
        if self.predictive:
            share = (self.position_layer(query).tanh() @ self.v_position).sigmoid()
            if lengths is None:
                return share * Tk
            return share * lengths.to(query.device).unsqueeze(-1)
        steps = torch.arange(Tq, device=query.device)
        if isinstance(position, Tensor):
            check_integers("LocalAttention", "position", position)
            _checks.check_shape("LocalAttention", "position", position.shape, "(B,)", (B,))
            return steps + position.to(query.device).unsqueeze(-1)
        if position is not None and (isinstance(position, bool) or not isinstance(position, int) or position < 0):
            raise ValueError(
                f"LocalAttention: position is {position!r}, expected an int of at least 0, or a tensor (B,)"
            )
        return (steps + (position or 0)).expand(B, Tq)
