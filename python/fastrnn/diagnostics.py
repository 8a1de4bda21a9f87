"""How gradients flow through time: vanishing, exploding, and what clipping does to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from ._checks import type_error
from ._convert import convert
from ._layer_checks import check_input
from .nn import GRU, LSTM, RNN
from .ops import rnn_layer

__all__ = ["GradientFlow", "gradient_flow", "plot_gradient_flow"]


class GradientFlow(NamedTuple):
    """Norms of the gradient of the loss with respect to the hidden state."""

    names: list[str]  # of the rows: "layer 0", "layer 0 reverse", ...
    norms: Tensor  # float64 [L*D, T], |dL/dh_t| of a row of the batch, averaged over the rows; t as in the input
    loss: float


def gradient_flow(
    module: Module, x: Tensor, loss: Callable[[Tensor], Tensor] | None = None, clip: float | None = None
) -> GradientFlow:
    """Norms of dL/dh_t over time for each layer and direction, with everything that flows back from later steps.

    Runs one step at a time, so that every h_t is at hand: for looking, not for training.

    Args:
        module: a fastrnn.nn or torch.nn LSTM, GRU or RNN; dropout is left out.
        x: [T, B, I], or [B, T, I] if the module is batch_first.
        loss: y [T, B, D*(P or H)] -> scalar; None for the mean of y at the last step (time 0 for a reverse direction).
        clip: if given, the gradient of each row's h_t is scaled down to this norm wherever it flows on.

    Returns:
        GradientFlow.

    Raises:
        TypeError: module is something else.
        ValueError: clip is not positive.

    Example:
        >>> flow = gradient_flow(torch.nn.RNN(3, 4), torch.randn(20, 2, 3))
        >>> flow.norms.shape
        torch.Size([1, 20])
    """
    module = convert(module, inplace=False) if isinstance(module, Module) else module
    if not isinstance(module, (LSTM, GRU, RNN)):
        raise TypeError(f"gradient_flow: module is a {type(module).__name__}, expected an LSTM, GRU or RNN")
    if loss is not None and not callable(loss):
        raise type_error("gradient_flow", "loss", loss, "a function of y")
    if clip is not None and not clip > 0:
        raise ValueError(f"gradient_flow: clip is {clip}, expected a positive norm")
    check_input("gradient_flow", x, "(B, T, I)" if module.batch_first else "(T, B, I)")
    weights, D = [w.detach() for w in module._flat_weights], 2 if module.bidirectional else 1
    n = len(weights) // (module.num_layers * D)
    y = x.detach().transpose(0, 1) if module.batch_first else x.detach()
    states: list[list[Tensor]] = []
    with torch.enable_grad():
        for k in range(module.num_layers):
            outputs = []
            for d in range(D):
                own = weights[(k * D + d) * n : (k * D + d + 1) * n]
                states.append(_unrolled(module._cell(), y, own, d == 1, clip))
                outputs.append(torch.cat(states[-1]))
            y = torch.cat(outputs, dim=-1)
        value = loss(y) if loss is not None else _last(y, D).mean()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise type_error("gradient_flow", "loss(y)", value, "a scalar tensor")
        value.backward()
    rows = [torch.stack([_norm(h) for h in s]) for s in states]
    names = [f"layer {k}{end}" for k in range(module.num_layers) for end in ("", " reverse")[:D]]
    return GradientFlow(names, torch.stack(rows), value.item())


def _unrolled(cell: str, x: Tensor, weights: list[Tensor], reverse: bool, clip: float | None) -> list[Tensor]:
    """The hidden state [1, B, H] after every step, in the order of time; each keeps its gradient."""
    found: list[Tensor] = []
    states = None
    for row in reversed(x.unbind(0)) if reverse else x.unbind(0):
        _, states = rnn_layer(cell, row.unsqueeze(0), weights, states)
        if not states[0].requires_grad:  # nothing before the first step wants a gradient
            states = (states[0].requires_grad_(), *states[1:])
        if clip is not None:
            states[0].register_hook(lambda g: g * (clip / g.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1))
        states[0].retain_grad()
        found.append(states[0])
    return found[::-1] if reverse else found


def _norm(h: Tensor) -> Tensor:
    zero = h.new_zeros((), dtype=torch.float64)
    return zero if h.grad is None else h.grad.double().norm(dim=-1).mean()


def _last(y: Tensor, D: int) -> Tensor:
    """What each direction says at its end."""
    return y[-1] if D == 1 else torch.cat((y[-1].chunk(2, -1)[0], y[0].chunk(2, -1)[1]), dim=-1)


def plot_gradient_flow(flows: GradientFlow | Mapping[str, GradientFlow], path: Any = None) -> Any:
    """Draws the norms over time on a logarithmic axis; a gradient that has become zero is not drawn.

    Args:
        flows: one result of gradient_flow(), or several with their names.
        path: where to save the picture; None does not save.

    Returns:
        The matplotlib figure (needs matplotlib).

    Example:
        >>> figure = plot_gradient_flow(gradient_flow(torch.nn.RNN(3, 4), torch.randn(20, 2, 3)))
    """
    from matplotlib.figure import Figure

    if not isinstance(flows, (GradientFlow, Mapping)):
        raise type_error("plot_gradient_flow", "flows", flows, "a GradientFlow, or a dict of them")
    named = {"": flows} if isinstance(flows, GradientFlow) else dict(flows)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, flow in named.items():
        for layer, norms in zip(flow.names, flow.norms):
            label = ", ".join(part for part in (name, layer if len(flow.names) > 1 or not name else "") if part)
            axes.semilogy(norms.masked_fill(norms == 0, math.nan).tolist(), label=label)
    axes.set_xlabel("time step t")
    axes.set_ylabel("|dL/dh_t|, mean over the batch")
    axes.grid(alpha=0.3)
    axes.legend()
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
