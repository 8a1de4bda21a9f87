"""Additive and dot attention on NumPy arrays, over the kernels that fastrnn.functional uses; see there for the equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core, threads
from ._attention_checks import additive_score, check_scale, check_shapes, function_of
from ._checks import check_rank, check_shape, dtype_error, shape_error, type_error
from ._numpy_stack import as_array, as_lengths, check_floats, wide_dtype


def additive_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    v: np.ndarray,
    *,
    activation: str = "tanh",
    scale: float = 1.0,
    lengths: Any = None,
    mask: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of Bahdanau et al. (2015, arXiv 1409.0473) on queries and keys that have been projected.

    Args:
        query: [B, Tq, D]; float32 or float64, float16 through float32.
        key: [B, Tk, D].
        value: [B, Tk, Dv].
        v: [D].
        activation: of the sum of query and key, "tanh" or "relu".
        scale: what scores are multiplied by, 1/temperature.
        lengths: [B] integers in [0, Tk], the keys of each row that are real.
        mask: bool [B, Tq, Tk], or broadcast to it; true where a key may be attended.
        bias: [B, Tq, Tk], or broadcast to it, of query's dtype; added to the scaled scores, -inf hides a key.

    Returns:
        context [B, Tq, Dv] and weights [B, Tq, Tk], zeros for a query that may attend to nothing.

    Raises:
        ShapeError, DTypeError, ValueError: naming argument, what it is and what is expected.

    Example:
        >>> q, k = np.ones((2, 3, 4), "f"), np.ones((2, 5, 4), "f")
        >>> context, weights = additive_attention(q, k, k, np.ones(4, "f"), lengths=[4, 0])
        >>> weights[0, 0].tolist()
        [0.25, 0.25, 0.25, 0.25, 0.0]
    """
    score = additive_score("additive_attention", activation)
    arrays = {"query": query, "key": key, "value": value, "v": v}
    return _attend(score, arrays, scale, lengths, mask, bias)


def dot_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    scale: float = 1.0,
    lengths: Any = None,
    mask: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of Luong et al. (2015, arXiv 1508.04025) with the score scale * (query . key).

    Args and returns as additive_attention, without v.

    Example:
        >>> q, k = np.ones((2, 3, 4), "f"), np.ones((2, 5, 4), "f")
        >>> context, weights = dot_attention(q, k, k, scale=0.5)
    """
    arrays = {"query": query, "key": key, "value": value}
    return _attend("dot", arrays, scale, lengths, mask, bias)


def _attend(
    score: str, arrays: dict[str, np.ndarray], scale: float, lengths: Any, mask: Any, bias: Any
) -> tuple[np.ndarray, np.ndarray]:
    f, query = function_of(score), arrays["query"]
    given = arrays if bias is None else arrays | {"bias": bias}
    for name, a in given.items():
        check_floats(f, name, a)
        if a.dtype != query.dtype:
            raise dtype_error(f, name, a.dtype, f"{query.dtype} (the dtype of query)")
    check_shapes(f, {name: a.shape for name, a in arrays.items()})
    scale = check_scale(f, scale)
    dtype = wide_dtype(query)
    (B, Tq, D), (_, Tk, Dv) = query.shape, arrays["value"].shape
    lengths = as_lengths(f, lengths, Tk, B)
    if mask is not None and (not isinstance(mask, np.ndarray) or mask.dtype != np.bool_):
        raise dtype_error(f, "mask", getattr(mask, "dtype", type(mask).__name__), "bool")
    mask = _expanded(f, "mask", mask, (B, Tq, Tk))
    bias = _expanded(f, "bias", None if bias is None else np.require(bias, dtype, "A"), (B, Tq, Tk))
    q, k, value, *v = (np.require(a, dtype, "CA") for a in arrays.values())
    context, weights = np.empty((B, Tq, Dv), dtype), np.empty((B, Tq, Tk), dtype)

    def run(k: np.ndarray, value: np.ndarray) -> None:
        addresses = [0 if a is None else a.ctypes.data for a in (q, k, value, v[0] if v else None, lengths)]
        limits = (*_address_and_strides(mask), *_address_and_strides(bias))
        call = _core.Attention(score, q.itemsize, B, Tq, Tk, D, Dv, *addresses, *limits, scale)
        _core.attention_forward(call, context.ctypes.data, weights.ctypes.data, threads.current())

    run(k, value)
    if (
        not (mask is None and bias is None) and not np.isfinite(context).all()
    ):  # see _attention_operators._without_hidden
        allowed = np.bool_(True) if mask is None else mask
        seen = (allowed if bias is None else allowed & (bias != -np.inf)).any(1)[..., None]
        run(np.where(seen, k, dtype.type(0)), np.where(seen, value, dtype.type(0)))
    return context.astype(query.dtype, copy=False), weights.astype(query.dtype, copy=False)


def _expanded(function: str, name: str, a: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if a is None:
        return None
    try:
        a = np.broadcast_to(a, shape)
    except ValueError:
        raise shape_error(function, name, a.shape, "(B, Tq, Tk)", shape) from None
    return a if all(s % a.itemsize == 0 for s in a.strides) else np.ascontiguousarray(a)


def _address_and_strides(a: np.ndarray | None) -> tuple[int, list[int]]:
    if a is None:
        return 0, [0, 0, 0]
    return a.ctypes.data, [s // a.itemsize for s in a.strides]


class AdditiveAttention:
    """fastrnn.nn.AdditiveAttention (with softmax) on NumPy arrays: projections of queries and memory, then attention.

    Args:
        weights: a state_dict with query_layer.weight, memory_layer.weight, v ([num_heads, D/num_heads] with several
            heads) and, if there are, memory_layer.bias and g; copied.
        prefix: of the names in the state_dict; other names are ignored only when one is given.
        activation: "tanh" or "relu".
        temperature: scores are divided by it.

    Example:
        >>> names = {"query_layer.weight": np.ones((8, 3), "f"), "memory_layer.weight": np.ones((8, 4), "f")}
        >>> attention = AdditiveAttention(names | {"v": np.ones(8, "f")})
        >>> context, weights = attention(np.ones((2, 5, 3), "f"), np.ones((2, 7, 4), "f"), lengths=[7, 2])
        >>> context.shape, weights.shape
        ((2, 5, 4), (2, 5, 7))
    """

    def __init__(
        self, weights: Mapping[str, Any], *, prefix: str = "", activation: str = "tanh", temperature: float = 1.0
    ):
        f = "AdditiveAttention"
        named = {k.removeprefix(prefix): as_array(f, k, w) for k, w in weights.items() if k.startswith(prefix)}
        wanted = ["query_layer.weight", "memory_layer.weight", "v"]
        missing = [n for n in wanted if n not in named]
        unexpected = sorted(set(named) - {*wanted, "memory_layer.bias", "g"})
        if missing or unexpected:
            raise KeyError(f"{f}: state_dict lacks {missing} and has unexpected {unexpected}")
        for n, w in named.items():
            check_floats(f, prefix + n, w)
            if w.dtype != named["v"].dtype:
                raise dtype_error(f, prefix + n, w.dtype, f"{named['v'].dtype} (the dtype of v)")
        if named["v"].ndim != 2:
            check_rank(f, "v", named["v"].shape, "(D)", " or (num_heads, D)")
        D = named["v"].size
        for n in wanted[:2]:
            check_rank(f, n, named[n].shape, "(D, size)")
            check_shape(f, n, named[n].shape, "(D, size)", (D, named[n].shape[1]))
        self.dtype = wide_dtype(named["v"])
        own = {n: np.array(w, self.dtype, order="C") for n, w in named.items()}
        self._query, self._memory, v = (own[n] for n in wanted)
        self._bias = own.get("memory_layer.bias", np.zeros(D, self.dtype))
        check_shape(f, "memory_layer.bias", self._bias.shape, "(D,)", (D,))
        self._v = v.reshape(-1, v.shape[-1])  # [num_heads, D/num_heads]
        if "g" in own:
            check_shape(f, "g", own["g"].shape, "one for each head", v.shape[:-1])
            self._v = own["g"].reshape(-1, 1) * self._v / np.linalg.norm(self._v, axis=1, keepdims=True)
        self.num_heads, self._joined = len(self._v), v.ndim == 1
        if self._memory.shape[1] % self.num_heads:
            size = self._memory.shape[1]
            raise ValueError(f"{f}: v has {self.num_heads} heads, expected a divisor of memory_size = {size}")
        check_scale(f, temperature)
        if not temperature > 0:
            raise ValueError(f"{f}: temperature is {temperature!r}, expected a finite number above 0")
        additive_score(f, activation)
        self.temperature, self.activation = float(temperature), activation

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], prefix: str = "", **options: Any) -> AdditiveAttention:
        """The class's constructor, under the name that the other layers have."""
        return cls(state_dict, prefix=prefix, **options)

    def precompute(self, memory: np.ndarray) -> np.ndarray:
        """The keys [B, Tk, D] of a memory [B, Tk, memory_size], for a decoder that attends to it many times."""
        return self._projected("memory", memory, self._memory) + self._bias

    def __call__(
        self,
        query: np.ndarray,
        memory: np.ndarray,
        *,
        lengths: Any = None,
        mask: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        keys: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attends.

        Args:
            query: [B, Tq, query_size], or [B, query_size] for one step, of the dtype of the weights.
            memory: [B, Tk, memory_size].
            lengths, mask, bias: as in additive_attention().
            keys: precompute(memory), computed here when absent.

        Returns:
            context [B, Tq, memory_size] and weights [B, Tq, Tk] ([B, num_heads, Tq, Tk] with several heads); without Tq
            for one step.

        Raises:
            ShapeError, DTypeError: naming argument, what it is and what is expected.
        """
        one = isinstance(query, np.ndarray) and query.ndim == 2
        projected = self._projected("query", query[:, None] if one else query, self._query)
        keys = self.precompute(memory) if keys is None else keys
        check_shape("AdditiveAttention", "keys", np.shape(keys), "(B, Tk, D)", (*memory.shape[:2], self._v.size))
        options = {"activation": self.activation, "scale": 1 / self.temperature}
        options |= {"lengths": lengths, "mask": mask, "bias": bias}
        parts = zip(*(np.split(a, self.num_heads, -1) for a in (projected, keys, memory)))
        found = [additive_attention(*own, v, **options) for own, v in zip(parts, self._v)]
        context = np.concatenate([c for c, _ in found], -1)
        weights = found[0][1] if self._joined else np.stack([w for _, w in found], 1)
        return (context[:, 0], weights[..., 0, :]) if one else (context, weights)

    def _projected(self, name: str, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        f = "AdditiveAttention"
        if not isinstance(x, np.ndarray):
            raise type_error(f, name, x, "a numpy.ndarray")
        if x.dtype != self.dtype:
            raise dtype_error(f, name, x.dtype, f"{self.dtype} (the dtype of the weights)")
        check_rank(f, name, x.shape, f"(B, T, {name}_size)")
        check_shape(f, name, x.shape, f"(B, T, {name}_size)", (*x.shape[:2], weight.shape[1]))
        return x @ weight.T
