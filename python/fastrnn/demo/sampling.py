"""Text from a trained model, one character at a time: what a stepper is for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bench.timing import settle
from .training import CharModel

PROMPT = "The "
TEMPERATURE = 0.7  # below 1: likely characters become more likely


@dataclass
class Sample:
    """Characters that a model produced, and the vectors that its recurrent layers gave for each."""

    ids: Tensor  # [N] int64, without the prompt
    y: Tensor  # [len(PROMPT) + N - 1, H]
    seconds: float  # median time of the recurrent layers per character


@torch.inference_mode()
def generate(model: CharModel, step: Callable[[Tensor], Tensor], vocabulary: str, count: int, seed: int) -> Sample:
    """`count` characters drawn after PROMPT.

    Args:
        step: the recurrent layers for one time step, x [1, H] -> y [1, H], which keeps the state.
    """
    chance = torch.Generator().manual_seed(seed)
    given = [vocabulary.index(c) for c in PROMPT]
    ids, rows, seconds = list(given), [], []
    settle()
    for k in range(len(given) + count - 1):
        x = model.embedding.weight[ids[k] : ids[k] + 1]
        start = time.perf_counter()
        y = step(x)
        seconds.append(time.perf_counter() - start)
        rows.append(y.clone())
        if k + 1 == len(ids):
            p = torch.softmax(model.head(y)[0] / TEMPERATURE, 0)
            ids.append(int(torch.multinomial(p, 1, generator=chance)))
    return Sample(torch.tensor(ids[len(given) :]), torch.cat(rows), statistics.median(seconds))


def one_step_calls(model: CharModel) -> Callable[[Tensor], Tensor]:
    """A step for generate() by calling the whole module with T = 1, which is what torch.nn offers."""
    state = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        y, state = model.recurrent(x.unsqueeze(0), state)
        return y[0]

    return step


@torch.inference_mode()
def whole_sequence(model: CharModel, sample: Sample, vocabulary: str) -> Tensor:
    """The same vectors as sample.y, computed by one call over the whole sequence."""
    prompt = torch.tensor([vocabulary.index(c) for c in PROMPT])
    ids = torch.cat([prompt, sample.ids[:-1]])
    return model.recurrent(model.embedding(ids).unsqueeze(1))[0].squeeze(1)
