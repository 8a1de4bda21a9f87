"""What the constructors of all modules share: checks in this package's words, and torch's default initialisation."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .._heads import split_rows

NONLINEARITIES = ("tanh", "relu", "sigmoid")


def check_options(name: str, num_layers: int, dropout: float, proj_size: int, **options: Any) -> None:
    """The checks of torch.nn.RNNBase, in this package's words."""
    for key in ("input_size", "hidden_size"):
        size = options.pop(key)
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name}: {key} is a {type(size).__name__}, expected an int")
        if size <= 0:
            raise ValueError(f"{name}: {key} is {size}, expected at least 1")
        if key == "hidden_size" and not 0 <= proj_size < size:
            raise ValueError(f"{name}: proj_size is {proj_size}, expected at least 0 and below hidden_size = {size}")
    for key, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: {key} is a {type(value).__name__}, expected a bool")
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise TypeError(f"{name}: num_layers is a {type(num_layers).__name__}, expected an int")
    if num_layers <= 0:
        raise ValueError(f"{name}: num_layers is {num_layers}, expected at least 1")
    if not isinstance(dropout, numbers.Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(f"{name}: dropout is {dropout!r}, expected a probability in [0, 1]")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"{name}: dropout = {dropout} acts between layers, so it does nothing with num_layers = 1", stacklevel=4
        )


def initialise(module: Module, hidden_size: int) -> None:
    """torch's default: uniform in +-1/sqrt(H), parameter by parameter, so that one seed gives the same weights."""
    bound = 1 / math.sqrt(hidden_size)
    for weight in module.parameters():
        torch.nn.init.uniform_(weight, -bound, bound)


def make_stepper(
    cell: str,
    layers: Sequence[tuple[Tensor | None, ...]],
    batch_size: int,
    zoneout: tuple[float, float] = (0.0, 0.0),
    num_heads: int = 1,
) -> Any:
    """The stepper for the device that the weights are on."""
    if layers[0][0].is_cpu and num_heads > 1:
        from .._head_stepper import HeadStepper

        split = [
            [w if w is None else split_rows(w, num_heads, layer[1].shape[1] * num_heads) for w in layer]
            for layer in layers
        ]
        heads = [[tuple(w if w is None else w[n] for w in layer) for n in range(num_heads)] for layer in split]
        return HeadStepper(cell, heads, batch_size, "torch", zoneout)
    if layers[0][0].is_cpu:
        from .._stepper import Stepper

        return Stepper(cell, layers, batch_size, "torch", zoneout)
    from .._device_stepper import DeviceStepper

    return DeviceStepper(cell, layers, batch_size, zoneout, num_heads)


def check_nonlinearity(name: str, nonlinearity: object) -> None:
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"{name}: nonlinearity is {nonlinearity!r}, expected one of {', '.join(NONLINEARITIES)}")
