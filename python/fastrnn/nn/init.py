"""Initial values for recurrent modules, in place: call them after the constructor.

Every function takes a fastrnn.nn or torch.nn recurrent module or cell, or any module that contains some, changes all of
them and returns its argument.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Module

from .. import _checks

__all__ = ["chrono_", "forget_bias_", "identity_", "orthogonal_"]

_RECURRENT = re.compile(r"weight_hh(_l\d+(_reverse)?)?$")


def _layers(module: Module) -> Iterator[tuple[Module, str, int]]:
    """Each recurrent module in `module`, the end of the names of one of its layers, and its gates."""
    for m in module.modules():
        for name, weight in list(m.named_parameters(recurse=False)):
            if _RECURRENT.match(name) and weight.ndim == 2 and hasattr(m, "hidden_size"):
                yield m, name.removeprefix("weight_hh"), weight.shape[0] // m.hidden_size


def _each(function: str, module: Module, change: Callable[[Module, str, int], bool]) -> Module:
    if not isinstance(module, Module):
        raise _checks.type_error(function, "module", module, "a torch.nn.Module")
    found = 0
    with torch.no_grad():
        for m, end, gates in _layers(module):
            found += change(m, end, gates)
    if not found:
        raise TypeError(f"{function}: {type(module).__name__} has no layer that this applies to")
    return module


def orthogonal_(module: Module, gain: float = 1.0) -> Module:
    """Makes the recurrent matrix of every gate orthogonal (Saxe et al. 2014), which keeps the norm of what goes
    through.

    Args:
        module: see the top of this file.
        gain: factor of the matrices.

    Raises:
        TypeError: there is no recurrent module.

    Example:
        >>> lstm = orthogonal_(torch.nn.LSTM(3, 4))
    """

    def change(m: Module, end: str, gates: int) -> bool:
        for gate in getattr(m, "weight_hh" + end).chunk(gates):
            torch.nn.init.orthogonal_(gate, gain)
        return True

    return _each("orthogonal_", module, change)


def identity_(module: Module, scale: float = 1.0) -> Module:
    """Sets the recurrent matrix of an RNN to `scale` times the identity and its biases to zero (IRNN, Le et al. 2015).

    Args:
        module: see the top of this file; only RNNs are changed.
        scale: 1 to remember long, less (the paper uses 0.01) for short dependencies.

    Raises:
        TypeError: there is no RNN.

    Example:
        >>> rnn = identity_(torch.nn.RNN(3, 4, nonlinearity="relu"))
    """

    def change(m: Module, end: str, gates: int) -> bool:
        w = getattr(m, "weight_hh" + end)
        if gates != 1 or w.shape[0] != w.shape[1]:
            return False
        torch.nn.init.eye_(w).mul_(scale)
        for name in ("bias_ih", "bias_hh"):
            if getattr(m, name + end, None) is not None:
                getattr(m, name + end).zero_()
        return True

    return _each("identity_", module, change)


def _gate_biases(m: Module, end: str, gates: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """The biases of the gates of an LSTM or sLSTM with a sigmoid forget gate: of the input and of the recurrent part."""
    biases = [getattr(m, name + end, None) for name in ("bias_ih", "bias_hh")]
    if gates != 4 or biases[0] is None or getattr(m, "forget_gate", "sigmoid") != "sigmoid":
        return None
    b_ih, b_hh = (list(b.chunk(4)) for b in biases)
    return b_ih, b_hh


def forget_bias_(module: Module, value: float = 1.0) -> Module:
    """Sets the bias of an LSTM's forget gate, both parts together, to `value` (Gers et al. 2000; Jozefowicz et al.
    2015).

    Args:
        module: see the top of this file; only LSTMs with biases and a forget gate are changed.
        value: 1 or more, so that an untrained LSTM remembers.

    Raises:
        TypeError: there is no such LSTM.

    Example:
        >>> lstm = forget_bias_(torch.nn.LSTM(3, 4))
    """

    def change(m: Module, end: str, gates: int) -> bool:
        biases = _gate_biases(m, end, gates)
        if biases is None:
            return False
        biases[0][1].fill_(value)
        biases[1][1].zero_()
        return True

    return _each("forget_bias_", module, change)


def chrono_(module: Module, max_steps: int) -> Module:
    """Draws an LSTM's forget biases for memories of 1 to max_steps steps (Tallec & Ollivier 2018):
    b_f = log(uniform(1, max_steps - 1)), b_i = -b_f.

    Args:
        module: see the top of this file; only LSTMs with biases and a forget gate are changed.
        max_steps: length of the longest dependency, at least 3.

    Raises:
        TypeError: there is no such LSTM.
        ValueError: max_steps is too small.

    Example:
        >>> lstm = chrono_(torch.nn.LSTM(3, 4), max_steps=100)
    """
    if isinstance(max_steps, bool) or not isinstance(max_steps, numbers.Real) or not 3 <= max_steps < math.inf:
        raise ValueError(f"chrono_: max_steps is {max_steps!r}, expected at least 3")

    def change(m: Module, end: str, gates: int) -> bool:
        biases = _gate_biases(m, end, gates)
        if biases is None:
            return False
        (b_i, b_f, *_), recurrent = biases
        b_f.uniform_(1, max_steps - 1).log_()
        b_i.copy_(-b_f)
        recurrent[0].zero_()
        recurrent[1].zero_()
        return True

    return _each("chrono_", module, change)
