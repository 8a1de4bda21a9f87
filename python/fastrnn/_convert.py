"""Replaces torch.nn's recurrent modules in a model by fastrnn's, and back, sharing the Parameter objects.

Optimisers, state_dicts, hooks and the training flag go on working, because everything that a module holds is handed
over. Only modules of exactly torch's (or fastrnn's) types are replaced: a subclass may compute something else.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import torch
from torch.nn import Module

from . import nn

__all__ = ["convert", "to_torch"]

_PAIRS = {
    torch.nn.LSTM: nn.LSTM,
    torch.nn.GRU: nn.GRU,
    torch.nn.RNN: nn.RNN,
    torch.nn.LSTMCell: nn.LSTMCell,
    torch.nn.GRUCell: nn.GRUCell,
    torch.nn.RNNCell: nn.RNNCell,
}
_BACK = {ours: theirs for theirs, ours in _PAIRS.items()}
# What torch.nn computes; its modules do not have these options.
_OPTIONS = {"reset_after": True, "coupled": False, "peepholes": False, "recurrent_activation": "sigmoid"}
_OPTIONS |= {"layer_norm": False, "zoneout": 0.0, "recurrent_dropout": 0.0, "weight_dropout": 0.0}
_OPTIONS |= {
    "input_dropout": 0.0,
    "output_dropout": 0.0,
    "checkpoint_every": 0,
    "grad_clip": 0.0,
    "learn_initial_state": False,
    "num_heads": 1,
    "reset_to": "zero",
    "candidate_dropout": 0.0,
    "candidate_dropout_per": "step",
}
_TORCH_ONLY = ("mode", "_flat_weights", "_flat_weight_refs")  # kept by torch.nn.RNNBase besides the parameters
_NAMES = {theirs.__name__ for theirs in _PAIRS}


def convert(model: Module, *, inplace: bool = True, strict: bool = True) -> Module:
    """Replaces every torch.nn.LSTM, GRU, RNN and their Cells in `model` by the fastrnn module with the same weights.

    Args:
        model: any module; it may be a recurrent module itself.
        inplace: True changes the containers inside `model`; False leaves `model` alone and returns a copy of its
            structure. The Parameter objects are the same either way.
        strict: True raises for recurrent modules that cannot be replaced; False leaves them as they are.

    Returns:
        The model, or the new module if `model` is itself a recurrent one.

    Raises:
        TypeError: not a module, or (strict) it contains a subclass of a torch recurrent module or a scripted one.

    Example:
        >>> model = convert(torch.nn.Sequential(torch.nn.LSTM(3, 4)))
    """
    return _replace(model, "convert", inplace, _to_fastrnn, _cannot_convert if strict else lambda module: None)


def to_torch(model: Module, *, inplace: bool = True) -> Module:
    """Replaces every fastrnn recurrent module in `model` by torch.nn's, with the same Parameter objects.

    Args:
        model: any module; it may be a recurrent module itself.
        inplace: as in convert().

    Returns:
        The model, or the new module if `model` is itself a recurrent one.

    Raises:
        TypeError: a module that torch.nn does not have: a GRU with reset_after=False, an LSTM with coupled=True or
            peepholes=True, hard-sigmoid gates, regularisers, options of backward, a learned initial state, heads, an
            RNN with the sigmoid, or a subclass.

    Example:
        >>> model = to_torch(convert(torch.nn.Sequential(torch.nn.LSTM(3, 4))))
    """
    return _replace(model, "to_torch", inplace, _to_torch, _cannot_go_back)


def _replace(
    model: Module,
    function: str,
    inplace: bool,
    replacement: Callable[[Module], Module | None],
    objection: Callable[[Module], str | None],
) -> Module:
    if not isinstance(model, Module):
        raise TypeError(f"{function}: model is a {type(model).__name__}, expected a torch.nn.Module")
    objections = [f"{name or 'model'} {text}" for name, m in model.named_modules() if (text := objection(m))]
    if objections:  # before anything is changed
        raise TypeError(f"{function}: {'; '.join(objections)}")
    if not inplace:
        kept = [*model.parameters(), *model.buffers()]
        model = copy.deepcopy(model, {id(t): t for t in kept})
    new = {id(m): r for m in model.modules() if (r := replacement(m)) is not None}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(model), model)


def _hand_over(old: Module, kind: type[Module], drop: tuple[str, ...]) -> Module:
    """A module of another type with everything that `old` holds; containers are copied, their contents shared."""
    module = kind.__new__(kind)
    for key, value in old.__dict__.items():
        if key not in drop:
            module.__dict__[key] = value.copy() if isinstance(value, (dict, list, set)) else value
    return module


def _to_fastrnn(module: Module) -> Module | None:
    kind = _PAIRS.get(type(module))
    if kind is None:
        return None
    new = _hand_over(module, kind, _TORCH_ONLY)
    for option, value in _OPTIONS.items():
        if option in inspect.signature(kind).parameters:
            setattr(new, option, value)
    return new


def _to_torch(module: Module) -> Module | None:
    kind = _BACK.get(type(module))
    if kind is None:
        return None
    new = _hand_over(module, kind, (*_OPTIONS, "_gates", "_rates", "_backprop"))
    if isinstance(new, torch.nn.RNNBase):
        new.__dict__["mode"] = module.mode
        new._init_flat_weights()
    return new


def _cannot_convert(module: Module) -> str | None:
    scripted = isinstance(module, torch.jit.ScriptModule) and module.original_name in _NAMES
    if scripted:
        return f"is a scripted {module.original_name}, expected the module before torch.jit.script"
    if isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)) and type(module) not in _PAIRS:
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        return f"is a {name}, expected a type of torch.nn itself, not a subclass (strict=False leaves it alone)"
    return None


def _cannot_go_back(module: Module) -> str | None:
    for option, value in _OPTIONS.items():
        if isinstance(module, tuple(_BACK)) and (own := getattr(module, option, value)) != value:
            return f"is a {type(module).__name__} with {option}={own!r}, which torch.nn does not have"
    if isinstance(module, (nn.RNN, nn.RNNCell)) and module.nonlinearity not in ("tanh", "relu"):
        return f"is a {type(module).__name__} with nonlinearity={module.nonlinearity!r}, which torch.nn does not have"
    if isinstance(module, (nn.FastRNN, nn.FastGRNN, nn.IndRNN, nn.MinGRU, nn.AUGRU, nn.SLSTM)):
        return f"is a {type(module).__name__}, which torch.nn does not have"
    if isinstance(module, tuple(_BACK)) and type(module) not in _BACK:
        return f"is a {type(module).__qualname__}, expected a type of fastrnn.nn itself, not a subclass"
    return None
