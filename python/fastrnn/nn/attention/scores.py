"""How a query and a key make a score: which parameters a module has for it, and its calls of fastrnn.functional.

    additive  v . act(W_q query + W_m memory + b)      Bahdanau et al. 2015; act tanh or relu; v or g v / |v|
    concat    v . tanh(W_q query + W_m memory)         Luong et al. 2015, W [query; memory] with W cut in two
    dot       scale (query . memory)
    general   scale (query . W memory)
    cosine    scale (query . memory) / (|query| |memory|)

The parameters belong to the module, so that they have the same names in its state_dict whichever module uses the score.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import normalize

from ..._attention_checks import additive_score
from ...attention import additive_attention, additive_scores, dot_attention, dot_scores

SCORES = ("additive", "concat", "dot", "general", "cosine")


class Scope(NamedTuple):
    """What restricts a call: the arguments of the fused functions, and a factor of the weights, which they do not have."""

    lengths: Any = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    factor: Tensor | None = None


class Additive:
    """v . act(W_q query + W_m memory + b)."""

    projects = True  # keys are computed from the memory, so that its padding could reach a gradient

    def __init__(
        self, bias: bool = True, activation: str = "tanh", weight_norm: bool = False, num_heads: int = 1
    ) -> None:
        self.bias, self.activation, self.weight_norm, self.num_heads = bias, activation, weight_norm, num_heads

    def make(self, m: Module, device: Any, dtype: Any) -> None:
        """Adds the parameters to module m."""
        D = m.attention_size
        m.query_layer = Linear(m.query_size, D, bias=False, device=device, dtype=dtype)
        m.memory_layer = Linear(m.memory_size, D, bias=self.bias, device=device, dtype=dtype)
        heads = () if self.num_heads == 1 else (self.num_heads,)
        m.v = Parameter(torch.empty(*heads, D // self.num_heads, device=device, dtype=dtype))
        if self.weight_norm:
            m.g = Parameter(torch.empty(heads, device=device, dtype=dtype))

    def reset(self, m: Module) -> None:
        """v uniform in +-1/sqrt(D), and g = 1/sqrt(D), where D is the width of a head."""
        m.query_layer.reset_parameters()
        m.memory_layer.reset_parameters()
        bound = 1 / math.sqrt(m.v.shape[-1])
        torch.nn.init.uniform_(m.v, -bound, bound)
        if self.weight_norm:
            torch.nn.init.constant_(m.g, bound)

    def queries(self, m: Module, query: Tensor) -> Tensor:
        return m.query_layer(query)

    def keys(self, m: Module, memory: Tensor) -> Tensor:
        return m.memory_layer(memory)

    def key_size(self, m: Module) -> int:
        return m.attention_size

    def _v(self, m: Module, head: int) -> Tensor:
        v = m.v if self.num_heads == 1 else m.v[head]
        if not self.weight_norm:
            return v
        return (m.g if self.num_heads == 1 else m.g[head]) * v / v.norm()

    def scores(self, m: Module, q: Tensor, k: Tensor, head: int = 0) -> Tensor:
        return additive_scores(q, k, self._v(m, head), activation=self.activation)

    def attend(
        self, m: Module, q: Tensor, k: Tensor, value: Tensor, scope: Scope, head: int = 0
    ) -> tuple[Tensor, Tensor]:
        options = {"lengths": scope.lengths, "mask": scope.mask, "bias": scope.bias, "scale": 1 / m.temperature}
        return additive_attention(q, k, value, self._v(m, head), activation=self.activation, **options)


class Dot:
    """scale (query . memory), and what derives from it."""

    projects, num_heads = False, 1

    def __init__(self, scale: float | str = 1.0) -> None:
        self.scale = scale

    def make(self, m: Module, device: Any, dtype: Any) -> None:
        if self.scale == "learned":
            m.g = Parameter(torch.empty((), device=device, dtype=dtype))

    def reset(self, m: Module) -> None:
        """A learned scale starts as 1."""
        if self.scale == "learned":
            torch.nn.init.ones_(m.g)

    def queries(self, m: Module, query: Tensor) -> Tensor:
        return query * m.g if self.scale == "learned" else query

    def keys(self, m: Module, memory: Tensor) -> Tensor:
        return memory

    def key_size(self, m: Module) -> int:
        return m.query_size

    def _factor(self) -> float:
        return 1.0 if self.scale == "learned" else self.scale

    def scores(self, m: Module, q: Tensor, k: Tensor, head: int = 0) -> Tensor:
        return dot_scores(q, k, self._factor())

    def attend(
        self, m: Module, q: Tensor, k: Tensor, value: Tensor, scope: Scope, head: int = 0
    ) -> tuple[Tensor, Tensor]:
        options = {"lengths": scope.lengths, "mask": scope.mask, "bias": scope.bias}
        return dot_attention(q, k, value, scale=self._factor() / m.temperature, **options)


class General(Dot):
    """scale (query . W memory)."""

    projects = True

    def make(self, m: Module, device: Any, dtype: Any) -> None:
        super().make(m, device, dtype)
        m.memory_layer = Linear(m.memory_size, m.query_size, bias=False, device=device, dtype=dtype)

    def reset(self, m: Module) -> None:
        super().reset(m)
        m.memory_layer.reset_parameters()

    def keys(self, m: Module, memory: Tensor) -> Tensor:
        return m.memory_layer(memory)


class Cosine(Dot):
    """scale times the cosine of the angle between query and memory."""

    projects = True

    def queries(self, m: Module, query: Tensor) -> Tensor:
        return super().queries(m, normalize(query, dim=-1))

    def keys(self, m: Module, memory: Tensor) -> Tensor:
        return normalize(memory, dim=-1)


Score = Additive | Dot


def make_score(function: str, name: str, scale: float | str = 1.0, **additive: Any) -> Score:
    """The score of this name.

    Args:
        function: name for the errors.
        name: one of SCORES.
        scale: of dot, general and cosine: a number, or "learned".
        additive: bias, activation, weight_norm and num_heads of the additive score.
    """
    if name not in SCORES:
        raise ValueError(f"{function}: score is {name!r}, expected one of {', '.join(map(repr, SCORES))}")
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and math.isfinite(scale)
    if not number and scale != "learned":
        raise ValueError(f"{function}: scale is {scale!r}, expected a finite number or 'learned'")
    if name in ("additive", "concat"):
        if scale != 1:
            raise ValueError(f"{function}: scale is {scale!r} with the score {name!r}, which has none; use temperature")
        additive_score(function, additive.get("activation", "tanh"))
        return Additive(bias=False) if name == "concat" else Additive(**additive)
    return {"dot": Dot, "general": General, "cosine": Cosine}[name](scale)
