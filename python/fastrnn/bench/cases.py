"""What is measured: the points of the grid, their data and their arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
MODES = ("infer", "train", "step")


@dataclass(frozen=True)
class Case:
    """One point: a single layer with I = H in float32, on `threads` threads.

    `mode` is "infer" (whole sequence, no gradients), "train" (forward and backward, input gradient included) or "step"
    (one time step per call, state fed back). `variant` is "dense", "ragged" (lengths uniform in [1, T]) or "reset"
    (a fraction `density` of the steps starts a new segment).
    """

    cell: str
    mode: str
    hidden: int
    batch: int
    steps: int = 100
    threads: int = 1
    variant: str = "dense"
    density: float = 0.0

    def __str__(self) -> str:
        text = f"{self.cell} {self.mode} H={self.hidden} B={self.batch} T={self.steps} threads={self.threads}"
        if self.variant == "reset":
            return f"{text} reset {self.density:.0%}"
        return text if self.variant == "dense" else f"{text} {self.variant}"


@dataclass
class Data:
    """Random weights and inputs of a case (torch tensors on the CPU, float32 unless said otherwise)."""

    module: object  # torch.nn.LSTM / GRU / RNN holding the weights
    x: object  # [T, B, I]
    lengths: object  # [B] int64 or None
    reset_mask: object  # [T, B] bool or None

    @property
    def active(self) -> float:
        """Fraction of the T*B steps that lie inside a sequence."""
        return 1.0 if self.lengths is None else float(self.lengths.sum()) / (self.x.shape[0] * self.x.shape[1])


@dataclass
class Contestant:
    """`run` does one sequence, or T single steps; `result` turns what the first run gave into named NumPy arrays."""

    run: Callable[[], object]
    result: Callable[[object], dict]
    activate: Callable[[], None] = lambda: None  # sets thread counts, untimed
    keep: list = field(default_factory=list)  # memory that a foreign library only points to


def grid(cells, hidden, batch, steps, threads, modes, ragged=False, reset=False) -> list[Case]:
    """All points of a grid, cells outermost; `ragged` and `reset` add those variants (step mode has neither)."""
    cases = []
    for cell, mode, h, b, n in itertools.product(cells, modes, hidden, batch, threads):
        dense = Case(cell, mode, h, b, steps, n)
        cases.append(dense)
        if ragged and mode != "step":
            cases.append(replace(dense, variant="ragged"))
        if reset and mode != "step":
            cases.append(replace(dense, variant="reset", density=0.01))
    return cases


def make_data(case: Case, seed: int = 0) -> Data:
    """Weights as torch.nn draws them and standard normal inputs: the same for every thread count of a case."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(torch.nn, case.cell.upper())(case.hidden, case.hidden)
    x = torch.randn(case.steps, case.batch, case.hidden, generator=generator)
    lengths = mask = None
    if case.variant == "ragged":
        lengths = torch.randint(1, case.steps + 1, (case.batch,), generator=generator)
    if case.variant == "reset":
        mask = torch.rand(case.steps, case.batch, generator=generator) < case.density
    return Data(module, x, lengths, mask)


def flops_per_step(case: Case, active: float = 1.0) -> float:
    """Multiply-adds counted as two: 2*G*H*(I+H)*B forward, three times that for forward and backward."""
    forward = 2.0 * GATES[case.cell] * case.hidden * 2 * case.hidden * case.batch * active
    return 3.0 * forward if case.mode == "train" else forward
