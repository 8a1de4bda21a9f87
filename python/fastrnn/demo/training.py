"""One character-level language model, trained twice: with torch.nn's recurrent layers and with fastrnn.nn's.

Everything but the recurrent layers is the same torch code on both sides. Weights start equal, batches, threads and
learning rates are the same, and the two take turns, so that whatever slows the machine down slows both.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..bench.timing import _machine_cpu, settle

TURN = 8  # steps before the other side's turn: within a turn caches and thread pools are warm, as in real training
PEAK_RATE = 4e-3
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

    def letters_alone(self) -> float:
        """Bits per held-out character for a model that knows how often each character occurs and nothing else."""
        counts = torch.bincount(self.train, minlength=len(self.vocabulary)).double() + 1
        return -(counts / counts.sum()).log2()[self.held_out].mean().item()


class CharModel(torch.nn.Module):
    """Embedding, recurrent layers, linear layer: the next character from all those before it.

    Args:
        library: torch.nn or fastrnn.nn, where the recurrent layers come from.
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
    loss: list[float] = field(default_factory=list)  # bits per character
    step_s: list[float] = field(default_factory=list)  # the whole training step
    forward_s: list[float] = field(default_factory=list)  # of it, the recurrent layers
    backward_s: list[float] = field(default_factory=list)

    def keep(self, steps: int) -> None:
        """Forget what was measured after so many steps."""
        for values in (self.loss, self.step_s, self.forward_s, self.backward_s):
            del values[steps:]


def sides(libraries: dict[str, ModuleType], cell: str, vocabulary: int, hidden: int, layers: int) -> list[Side]:
    """A model for each library, with the same initial weights, each with its own Adam."""
    models = {name: CharModel(library, cell, vocabulary, hidden, layers) for name, library in libraries.items()}
    first, *rest = models.values()
    for model in rest:
        model.load_state_dict(first.state_dict())
    return [_side(name, model) for name, model in models.items()]


def _side(name: str, model: CharModel) -> Side:
    return Side(name, model, torch.optim.Adam(model.parameters(), fused=True))


def one_rounding_away(side: Side) -> Side:
    """The same model with every weight moved to the next float32: how far apart do two trainings drift by themselves?

    With the default options about as far as torch.nn and fastrnn.nn do: below 1e-6 bits in the first 100 steps, up to
    0.07 in 2000.
    """
    model = copy.deepcopy(side.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.nextafter(weight, torch.tensor(math.inf)))
    return _side(f"{side.name}, one rounding away", model)


class Disturbance:
    """How much of all CPU time other processes take, from here on."""

    def __init__(self) -> None:
        self._machine, self._own = _machine_cpu(), time.process_time()

    def share(self) -> float | None:
        """A number between 0 and 1, None where the system does not say."""
        machine, own = _machine_cpu(), time.process_time() - self._own
        if not self._machine or not machine or machine[1] <= self._machine[1]:
            return None
        return max(0.0, (machine[0] - self._machine[0] - own) / (machine[1] - self._machine[1]))


def batches(ids: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Endless (x [T, B], the next characters [T, B], whether the text starts again) from `batch` parallel streams."""
    stream = (len(ids) - 1) // batch
    x = ids[: stream * batch].view(batch, stream).t()
    y = ids[1 : stream * batch + 1].view(batch, stream).t()
    while True:
        for t in range(0, stream - length + 1, length):
            yield x[t : t + length], y[t : t + length], t == 0


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
    side.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    side.step_s.append(clock() - start)
    side.forward_s.append(after_forward - before_forward)
    side.backward_s.append(after_backward - before_backward)
    side.loss.append(loss.item() / math.log(2))


def race(
    contestants: list[Side],
    text: Text,
    batch: int,
    length: int,
    steps: int,
    seconds: float = math.inf,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train every side on the same batches, in turns; the learning rate falls linearly to zero.

    Args:
        length: characters per step and row, T.
        steps: training steps of each side.
        seconds: no new turn begins after this time, except the first.
        progress: called after each turn with the number of steps that each side has done in it.
    """
    source = batches(text.train, batch, length)
    began, done = time.perf_counter(), 0
    while done < steps and (done == 0 or time.perf_counter() - began < seconds):
        turn = [next(source) for _ in range(min(TURN, steps - done))]
        for side in contestants if done // TURN % 2 == 0 else contestants[::-1]:
            settle()
            for k, (x, target, again) in enumerate(turn):
                if again:
                    side.state = None
                train_step(side, x, target, PEAK_RATE * (1 - (done + k) / steps))
        done += len(turn)
        progress(len(turn))


@torch.inference_mode()
def bits_per_character(model: CharModel, ids: Tensor, batch: int = 16, length: int = 256) -> float:
    """Mean of -log2 p(next character) over ids, read once as `batch` streams from the zero state."""
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
