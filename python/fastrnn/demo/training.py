"""One character-level language model, trained twice: with torch.nn's recurrent layers and with fastrnn.nn's.

Everything but the recurrent layers is the same torch code on both sides. Weights start equal, batches, threads and
learning rates are the same, and the two take turns, so that whatever slows the machine down slows both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..bench.timing import settle

TURN = 8  # steps before the other side's turn: within a turn caches and thread pools are warm, as in real training
CLIP = 1.0


@dataclass
class Text:
    """Characters as numbers, the last tenth of them held out."""

    vocabulary: str
    train: Tensor  # [N] int64
    held_out: Tensor

    @staticmethod
    def of(text: str) -> Text:
        vocabulary = "".join(sorted(set(text)))
        number = {c: i for i, c in enumerate(vocabulary)}
        ids = torch.tensor([number[c] for c in text])
        cut = len(ids) * 9 // 10
        return Text(vocabulary, ids[:cut], ids[cut:])


class CharModel(torch.nn.Module):
    """Embedding, recurrent layers, linear layer: the next character from all those before it.

    Args:
        library: torch.nn or fastrnn.nn; where the recurrent layers come from.
        cell: "GRU", "LSTM" or "RNN".
        vocabulary: number of characters.
        hidden: width of the embedding and of each recurrent layer.
        layers: recurrent layers.
    """

    def __init__(self, library: ModuleType, cell: str, vocabulary: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, hidden)
        self.recurrent = getattr(library, cell)(hidden, hidden, num_layers=layers)
        self.head = torch.nn.Linear(hidden, vocabulary)


@dataclass
class Side:
    """One of the two contestants: its model, and what was measured, one entry per training step."""

    name: str
    model: CharModel
    optimiser: torch.optim.Optimizer
    state: Any = None  # carried from batch to batch, as the text runs on
    loss: list[float] = field(default_factory=list)  # nats per character
    step_s: list[float] = field(default_factory=list)  # the whole training step
    forward_s: list[float] = field(default_factory=list)  # of it, the recurrent layers
    backward_s: list[float] = field(default_factory=list)


def sides(libraries: dict[str, ModuleType], cell: str, vocabulary: int, hidden: int, layers: int) -> list[Side]:
    """Two models with the same initial weights, each with its own Adam."""
    models = {name: CharModel(library, cell, vocabulary, hidden, layers) for name, library in libraries.items()}
    first, *rest = models.values()
    for model in rest:
        model.load_state_dict(first.state_dict())
    return [Side(name, model, torch.optim.Adam(model.parameters(), fused=True)) for name, model in models.items()]


def batches(ids: Tensor, batch: int, steps: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Endless (x [T, B], next characters [T, B], whether the text starts again) from `batch` streams side by side."""
    length = (len(ids) - 1) // batch
    x = ids[: length * batch].view(batch, length).t()
    y = ids[1 : length * batch + 1].view(batch, length).t()
    while True:
        for t in range(0, length - steps + 1, steps):
            yield x[t : t + steps], y[t : t + steps], t == 0


def detached(state: Any) -> Any:
    """The state (a tensor, or a tuple of them) without its history."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def train_step(side: Side, x: Tensor, target: Tensor, rate: float) -> None:
    """One step of truncated backpropagation through time.

    The graph is cut in front of and behind the recurrent layers, so that their backward can be timed by itself; the
    three pieces give the gradients that one loss.backward() would give.
    """
    clock, model = time.perf_counter, side.model
    start = clock()
    for group in side.optimiser.param_groups:
        group["lr"] = rate
    side.optimiser.zero_grad()
    embedded = model.embedding(x)
    entering = embedded.detach().requires_grad_()
    before_forward = clock()
    y, state = model.recurrent(entering, side.state)
    after_forward = clock()
    leaving = y.detach().requires_grad_()
    loss = cross_entropy(model.head(leaving).flatten(0, 1), target.flatten())
    loss.backward()
    before_backward = clock()
    y.backward(leaving.grad)
    after_backward = clock()
    embedded.backward(entering.grad)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    side.optimiser.step()
    side.state = detached(state)
    side.step_s.append(clock() - start)
    side.forward_s.append(after_forward - before_forward)
    side.backward_s.append(after_backward - before_backward)
    side.loss.append(loss.item())


def race(
    contestants: list[Side],
    text: Text,
    batch: int,
    length: int,
    steps: int,
    peak_rate: float,
    seconds: float,
    progress: Callable[[int], None],
) -> int:
    """Train every side on the same batches, in turns; the learning rate falls linearly to zero.

    Args:
        length: characters per step and row, T.
        steps: training steps of each side.
        seconds: stop after a turn that ends later than this.
        progress: called with the number of steps that each side has just done.

    Returns:
        The steps that each side has done.
    """
    source = batches(text.train, batch, length)
    began, done = time.perf_counter(), 0
    while done < steps and time.perf_counter() - began < seconds:
        turn = [next(source) for _ in range(min(TURN, steps - done))]
        order = contestants if done // TURN % 2 == 0 else contestants[::-1]
        for side in order:
            settle()
            for k, (x, target, again) in enumerate(turn):
                if again:
                    side.state = None
                train_step(side, x, target, peak_rate * (1 - (done + k) / steps))
        done += len(turn)
        progress(len(turn))
    return done


@torch.inference_mode()
def bits_per_character(model: CharModel, ids: Tensor, batch: int = 16, length: int = 256) -> float:
    """Mean of -log2 p(next character) over ids, read as `batch` streams from the zero state."""
    state, total, count = None, 0.0, 0
    length = min(length, (len(ids) - 1) // batch)
    for x, target, again in batches(ids, batch, length):
        if again and count:
            break
        y, state = model.recurrent(model.embedding(x), state)
        logits = model.head(y).flatten(0, 1).double()
        total += cross_entropy(logits, target.flatten(), reduction="sum").item()
        count += target.numel()
    return total / count / math.log(2)



