"""What the tests of the CUDA engine share: cases, tolerances, and a layer run on a device."""

from __future__ import annotations

import cases
import torch
from cases import Case

CELLS = cases.CELLS
NORMALISED = [cell for cell in CELLS if cell.endswith("_norm")]
SCHEDULES = ("cta", "cluster", "grid", "stepwise")
# As in cases.TOLERANCE. The narrow types round h and the gate gradients at every step and the results once more: a few
# units of 2^-8 and 2^-11. The weight gradients of the largest case sum 136 such terms: sqrt(136) * 2^-8 = 5e-2.
TOLERANCE = {
    torch.float32: {"output": 5e-6, "gradient": 4e-5},
    torch.float64: {"output": 1e-13, "gradient": 1e-12},
    torch.bfloat16: {"output": 2e-2, "gradient": 6e-2},
    torch.float16: {"output": 2e-3, "gradient": 1e-2},
}
# One unit, odd numbers, whole tiles, more rows than a tile, more units than a CTA takes, every option.
CASES = [
    Case(1, 1, 1, 1, states=False),
    Case(2, 3, 5, 16, D=2, bias=False, batch_first=True),
    Case(5, 9, 7, 33, D=2, ragged=True, reset=0.3),
    Case(4, 34, 3, 40, ragged=True, batch_first=True, reset=1.0),
    Case(3, 2, 8, 100, reset=0.3),
]


def on(device: str, inputs: cases.Inputs) -> cases.Inputs:
    """The same inputs on another device."""
    if device == "cpu":
        return inputs
    moved = [t.detach().to(device).requires_grad_() for t in inputs]
    n = len(inputs.states)
    lengths, mask = (None if t is None else t.to(device) for t in (inputs.lengths, inputs.reset_mask))
    return cases.Inputs(
        inputs.cell, inputs.case, moved[0], moved[1 : 1 + n], moved[1 + n :], lengths, mask, inputs.names
    )


def results(inputs: cases.Inputs, schedule: str = "", **options) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name, on the CPU."""
    out = cases.kernel(inputs, schedule=schedule, **options)
    generator = torch.Generator().manual_seed(1)
    ups = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in out.values()]
    found = torch.autograd.grad(list(out.values()), list(inputs), ups)
    return {k: v.detach().cpu() for k, v in (out | dict(zip((f"d{n}" for n in inputs.named()), found))).items()}


def schedules_for(dtype: torch.dtype) -> tuple[str, ...]:
    return SCHEDULES if dtype is not torch.float64 else ("cta", "cluster", "stepwise")


SAME_BUT_FOR_AN_ACTIVATION = {"rnn_relu", "rnn_sigmoid", "indrnn_relu", "slstm_exponential"}
SAME_BUT_FOR_AN_ACTIVATION |= {cell for cell in CELLS if cell.endswith("_hard")}
