"""Inputs, oracle runs and tolerances that the layer tests share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _core, ops, reference
from fastrnn._backprop import Backprop
from fastrnn._noise import Noise, Rates

CELLS = list(_core.CELLS)
BLOCKS = [
    name for name, cell in _core.CELLS.items() if cell["product"] and not name.endswith("_norm")
]  # can have heads
WITH_C = [name for name, cell in _core.CELLS.items() if cell["states"] == 2]  # these can be projected
STATES = ("h", "c", "n", "m")

# Largest error, as a part of 1 + |expected|. A step sums K = I + H products in float32: rounding alone gives about
# sqrt(K) * 2^-24 (6e-7 at K = 100) in the pre-activation, the recurrence of a contracting cell multiplies that by a
# small factor, and a weight gradient sums T * B such terms. The bounds leave a factor of about five to that; an index
# or gate that is wrong shows as 1e-2 and more. float64 scales by 2^-29.
TOLERANCE = {
    torch.float32: {"output": 5e-6, "gradient": 4e-5},
    torch.float64: {"output": 1e-13, "gradient": 1e-12},
}


@dataclass(frozen=True)
class Case:
    """Sizes and options of one layer call. The names of the sizes are those of the code."""

    T: int
    B: int
    I: int
    H: int
    D: int = 1
    P: int = 0  # LSTM only
    bias: bool = True
    states: bool = True
    ragged: bool = False
    reset: float = 0.0  # probability of a reset at each step
    batch_first: bool = False
    heads: int = 1
    reset_to: str = "zero"

    def __str__(self) -> str:
        flags = [f for f in ("ragged", "batch_first") if getattr(self, f)]
        flags += ["no_bias"] * (not self.bias) + ["no_state"] * (not self.states) + ["reset"] * (self.reset > 0)
        flags += ["to_initial"] * (self.reset_to == "initial")
        sizes = f"T{self.T}B{self.B}I{self.I}H{self.H}D{self.D}"
        sizes += f"P{self.P}" * (self.P > 0) + f"N{self.heads}" * (self.heads > 1)
        return "-".join([sizes, *flags])


# Ones, odd numbers, primes, whole tiles and one more than a tile, each with options that meet in one place.
CASES = [
    Case(1, 1, 1, 1),
    Case(1, 7, 3, 16, D=2, batch_first=True),
    Case(2, 1, 16, 3, D=2, bias=False),
    Case(2, 13, 5, 17, ragged=True),
    Case(9, 1, 17, 64),
    Case(9, 2, 33, 33, D=2, states=False, reset=0.3),
    Case(9, 7, 1, 100, batch_first=True, ragged=True, reset=0.3),
    Case(9, 13, 40, 16, D=2, ragged=True, reset=1.0),
    Case(5, 33, 7, 31, D=2, bias=False, ragged=True, batch_first=True),
    Case(3, 2, 2, 130, D=1, states=False),
]
PROJECTED = [
    Case(1, 1, 1, 2, P=1),
    Case(9, 7, 5, 33, D=2, P=17, ragged=True, reset=0.3),
    Case(5, 13, 16, 64, P=16, bias=False, batch_first=True),
    Case(9, 2, 3, 48, D=2, P=5, states=False),
    Case(9, 7, 5, 33, D=2, P=17, ragged=True, reset=0.3, reset_to="initial"),
]
# Resets to the initial state: rows that are reset never, often and always, in one chunk of backward and across chunks.
INITIAL = [
    Case(9, 7, 5, 33, D=2, ragged=True, reset=0.3, reset_to="initial"),
    Case(5, 1, 3, 16, batch_first=True, reset=1.0, reset_to="initial"),
    Case(9, 90, 3, 17, D=2, reset=0.2, ragged=True, reset_to="initial"),
]
# For cells with a recurrent matrix and without norms.
HEADED = [
    Case(9, 7, 5, 33, D=2, ragged=True, reset=0.3, heads=3, reset_to="initial"),
    Case(4, 13, 6, 10, bias=False, states=False, heads=10),
    Case(5, 1, 3, 128, D=2, batch_first=True, heads=2),
]


@dataclass
class Inputs:
    """The tensors of one call; `named()` are those that have gradients."""

    cell: str
    case: Case
    x: torch.Tensor
    states: list[torch.Tensor]
    weights: list[torch.Tensor]
    lengths: torch.Tensor | None
    reset_mask: torch.Tensor | None
    names: list[str] = field(default_factory=list)

    def named(self) -> dict[str, torch.Tensor]:
        states = [f"{name}0" for name in STATES[: len(self.states)]]
        return dict(zip(["x", *states, *self.names], [self.x, *self.states, *self.weights]))

    def to(self, dtype: torch.dtype) -> Inputs:
        """New leaves with the same values in another dtype."""
        x, *rest = (t.detach().to(dtype).clone().requires_grad_() for t in self.named().values())
        n = len(self.states)
        return Inputs(self.cell, self.case, x, rest[:n], rest[n:], self.lengths, self.reset_mask, self.names)

    def __iter__(self):
        return iter(self.named().values())


def make(cell: str, case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """Random inputs; weights have torch's default scale, so that the recurrence contracts."""
    g = torch.Generator().manual_seed(seed)
    c, G, S = case, _core.CELLS[cell]["gates"], _core.CELLS[cell]["states"]
    out, first = c.P or c.H, (c.B, c.T) if c.batch_first else (c.T, c.B)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def weight(*shape: int) -> torch.Tensor:
        return ((torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1) / math.sqrt(c.H)).to(dtype)

    vectors = _core.CELLS[cell]["vectors"]
    weights, names = [], []
    for end in ("", "_reverse")[: c.D]:
        shapes = {"w_ih": (G * c.H, c.I), "w_hh": (G * c.H, out // c.heads if _core.CELLS[cell]["product"] else 0)}
        if c.bias or vectors:
            shapes |= {"b_ih": (G * c.H,), "b_hh": ((G + vectors) * c.H,)}
        if c.P:
            shapes["w_hr"] = (c.P, c.H)
        names += [name + end for name in shapes]
        weights += [weight(*shape) for shape in shapes.values()]
    x = normal(*first, c.I)
    states = [normal(c.D, c.B, out), *(normal(c.D, c.B, c.H) for _ in range(S - 1))] if c.states else []
    if len(states) > 2:
        states[2] = states[2].abs() + 0.5  # a normaliser is a sum of exponentials; small ones blow up what they divide
    lengths = torch.randint(0, c.T + 1, (c.B,), generator=g) if c.ragged else None
    reset = torch.rand(first, generator=g) < c.reset if c.reset else None
    for t in (x, *states, *weights):
        t.requires_grad_()
    return Inputs(cell, case, x, states, weights, lengths, reset, names)


def kernel(i: Inputs, states: bool = False, **options) -> dict[str, torch.Tensor]:
    """Outputs of the compiled layer, by name; with states also c of every step, `cs`."""
    keep = ops.Keep() if states else None
    run = ops.rnn_layer
    if i.case.heads > 1:
        sizes = (i.case.I, i.case.H, i.case.P)
        run = partial(ops.rnn_heads, i.case.heads, function=i.cell, suffix="", expected=sizes)
    y, last = run(
        i.cell, i.x, i.weights, i.states or None, i.lengths, i.reset_mask,
        directions=i.case.D, batch_first=i.case.batch_first, keep=keep, reset_to=i.case.reset_to, **options,
    )  # fmt: skip
    return dict(zip(("y", *STATES), (y, *last))) | ({"cs": keep.c} if states else {})


def oracle(
    i: Inputs, noise: Noise | None = None, states: bool = False, backprop: Backprop | None = None
) -> dict[str, torch.Tensor]:
    """The same by reference.layer()."""
    x, mask = i.x, i.reset_mask
    if i.case.batch_first:
        x, mask = x.transpose(0, 1), None if mask is None else mask.t()
    if noise is not None and noise.h_mask is not None:
        noise = noise._replace(h_mask=noise.h_mask.to(x.dtype))
    detach_mask, clip = (None, 0.0) if backprop is None else (backprop.detach_mask, backprop.grad_clip)
    if detach_mask is not None and i.case.batch_first:
        detach_mask = detach_mask.t()
    y, last, *cs = reference.layer(
        i.cell,
        x,
        i.weights,
        i.states or None,
        i.lengths,
        mask,
        i.case.D,
        noise,
        states,
        detach_mask,
        clip,
        num_heads=i.case.heads,
        reset_to=i.case.reset_to,
    )
    y, *cs = (t.transpose(0, 1) if i.case.batch_first else t for t in (y, *cs))
    return dict(zip(("y", *STATES), (y, *last))) | dict(zip(("cs",), cs))


def noise_for(
    cell: str,
    case: Case,
    training: bool,
    dtype: torch.dtype,
    recurrent_dropout: bool = True,
    candidate_dropout: float = 0.0,
) -> Noise:
    """Every regulariser that the cell can have, or in inference the expectation of those that act then."""
    zoneout = (0.0 if case.P else 0.3, 0.4 if cell in WITH_C else 0.0)
    if cell.endswith("_norm"):
        zoneout = (0.0, 0.0)
    mask = None
    if training and recurrent_dropout and _core.CELLS[cell]["product"]:
        rates = Rates(recurrent_dropout=0.25, seed=5)
        mask = rates.of_layer(0, True, torch.ones(1, dtype=dtype), case.B, case.P or case.H, case.D).h_mask
    if not training or not _core.CELLS[cell]["drops_candidate"]:
        candidate_dropout = 0.0
    return Noise(0xFEDCBA9876543210, zoneout, training, mask, candidate_dropout, case.T % 2 == 1)


def gradients(i: Inputs, outputs: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """Gradients by name for random upstream gradients that depend on the seed and the shapes only."""
    g = torch.Generator().manual_seed(seed)
    ups = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs.values()]
    named = i.named()
    found = torch.autograd.grad(list(outputs.values()), list(named.values()), ups)
    return {f"d{name}": grad for name, grad in zip(named, found)}


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest error as a part of 1 + |expected|; shapes must agree."""
    assert got.shape == want.shape, (got.shape, want.shape)
    if not got.numel():
        return 0.0
    return ((got.double() - want.double()).abs() / (1 + want.double().abs())).max().item()


def magnified(cell: str, case: Case) -> int:
    """By how much a tolerance grows: two units may be nearly equal, and layer normalisation magnifies their difference,
    and its rounding, by up to 1 / sqrt(eps)."""
    return 10 if cell.endswith("_norm") and case.H < 4 else 1


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every tensor by name; a NaN counts as infinitely wrong."""
    assert got.keys() == want.keys()
    errors = {name: worst(got[name], want[name]) for name in got}
    bad = {name: f"{e:.2g}" for name, e in errors.items() if not e <= tolerance}
    assert not bad, f"errors above {tolerance:g}: {bad}"


def check_transforms(f, tensors) -> None:
    """torch.func's grad, grad of grad, jacrev and vmap of a scalar function, against autograd and a loop."""
    func, every = torch.func, tuple(range(len(tensors)))
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    tensors = [t.detach() for t in tensors]

    def second(*given):
        return sum(g.square().sum() for g in func.grad(f, every)(*given))

    first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(func.grad(f, every)(*tensors), first)
    torch.testing.assert_close(func.jacrev(f)(*tensors), first[0])
    want = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    torch.testing.assert_close(func.grad(second, every)(*tensors), want)
    batch = [torch.stack((t, t / 2)) for t in tensors]
    rows = [func.grad(f, every)(*row) for row in zip(*batch)]
    torch.testing.assert_close(func.vmap(func.grad(f, every))(*batch), tuple(torch.stack(g) for g in zip(*rows)))
    one = func.vmap(f, (0, *(None for _ in tensors[1:])))(batch[0], *tensors[1:])
    torch.testing.assert_close(one, torch.stack([f(t, *tensors[1:]) for t in batch[0]]))


def flatten(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [t for t in result if t is not None]
    return [t for part in result for t in flatten(part)]


def assert_same(ours, theirs, **tolerance):
    a, b = flatten(ours), flatten(theirs)
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.dtype is y.dtype
        torch.testing.assert_close(x, y, **tolerance)
