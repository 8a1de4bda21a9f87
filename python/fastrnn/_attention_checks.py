"""Argument checks of attention that torch and NumPy share: shapes are sequences of ints, no array is touched."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

from ._checks import check_rank, check_shape

ACTIVATIONS = {"additive": "tanh", "additive_relu": "relu"}  # of the scores in `_core` that have a parameter v


def function_of(score: str) -> str:
    """The public function that has this score."""
    return "additive_attention" if score in ACTIVATIONS else f"{score}_attention"


def additive_score(function: str, activation: object) -> str:
    """The additive score with this activation; raises ValueError if there is none."""
    for score, name in ACTIVATIONS.items():
        if activation == name:
            return score
    raise ValueError(
        f"{function}: activation is {activation!r}, expected {' or '.join(map(repr, ACTIVATIONS.values()))}"
    )


def check_shapes(function: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ShapeError unless the shapes of query, key and, where they are present, value and v fit together.

    Args:
        function: name for the errors.
        shapes: by argument: query [B, Tq, D], key [B, Tk, D], value [B, Tk, Dv], v [D].
    """
    for name, shape in shapes.items():
        check_rank(function, name, shape, "(D)" if name == "v" else "(B, T, D)")
    (B, _, D), Tk = shapes["query"], shapes["key"][1]
    check_shape(function, "key", shapes["key"], "(B, Tk, D)", (B, Tk, D))
    if "value" in shapes:
        check_shape(function, "value", shapes["value"], "(B, Tk, Dv)", (B, Tk, shapes["value"][2]))
    if "v" in shapes:
        check_shape(function, "v", shapes["v"], "(D,)", (D,))


def check_scale(function: str, scale: object) -> float:
    """The scale of scores as a float; raises ValueError unless it is a finite number."""
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not -math.inf < scale < math.inf:
        raise ValueError(f"{function}: scale is {scale!r}, expected a finite number")
    return float(scale)
