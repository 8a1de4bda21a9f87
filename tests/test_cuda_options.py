"""Regularisers, states of every step and options of backward of the CUDA engine against the oracle, see test_cuda.py."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from cases import Case  # noqa: E402
from cuda_cases import (  # noqa: E402
    CASES,
    CELLS,
    NORMALISED,
    SAME_BUT_FOR_AN_ACTIVATION,
    SCHEDULES,
    TOLERANCE,
    on,
    results,
    schedules_for,
)

from fastrnn import _backends, _cuda_kernels, ops  # noqa: E402
from fastrnn._backprop import Backprop  # noqa: E402

# Those of fastrnn.nn.LSTM, GRU, RNN and SLSTM, which have these options, the last not all of them.
REGULARISED = [c for c in CELLS if c.startswith(("lstm", "gru", "rnn", "slstm"))]
# Resets to the initial state, at some steps and at all, in padding as well.
INITIAL = [
    Case(5, 9, 7, 33, D=2, ragged=True, reset=0.3, reset_to="initial"),
    Case(3, 34, 3, 40, ragged=True, batch_first=True, reset=1.0, reset_to="initial"),
]
# Regularisers and gradients of c of every step run in kernels of their own: every cell in every schedule once, the other
# element types, options and expectations with cells that differ in kind.
SPECIAL = [
    *itertools.product(
        SCHEDULES, [c for c in REGULARISED if c not in SAME_BUT_FOR_AN_ACTIVATION], CASES[2:3], [torch.float32]
    ),
    *itertools.product(SCHEDULES, ["lstm_peephole", "gru_reset_before"], CASES[1:2], [torch.float32]),
    *itertools.product(("cluster", "stepwise"), ["lstm"], cases.PROJECTED[1:2], [torch.float32]),
    *(
        (schedule, cell, CASES[2], dtype)
        for dtype in list(TOLERANCE)[1:]
        for schedule, cell in itertools.product(schedules_for(dtype), ["lstm", "gru", "gru_reset_before"])
    ),
]
SPECIAL += [
    *itertools.product(
        SCHEDULES, ["lstm_peephole", "gru", "gru_reset_before", "rnn_tanh", "lstm_norm"], INITIAL[:1], [torch.float32]
    ),
    *itertools.product(["cta", "stepwise"], ["lstm", "gru_reset_before"], INITIAL[1:], [torch.float32]),
    *(
        (schedule, cell, INITIAL[0], dtype)
        for dtype in list(TOLERANCE)[1:]
        for schedule, cell in itertools.product(("cta", "stepwise"), ["lstm_cifg", "gru_reset_before"])
    ),
]
SPECIAL = [(*of, True) for of in SPECIAL] + [
    (*of, False) for of in itertools.product(SCHEDULES, ["lstm", "gru_reset_before"], CASES[2:3], [torch.float32])
]


@pytest.mark.parametrize(
    ("schedule", "cell", "case", "dtype", "training"),
    SPECIAL,
    ids=[f"{s}-{c}-{k}-{str(d)[6:]}-{'training' if t else 'eval'}" for s, c, k, d, t in SPECIAL],
)
def test_regularisers_and_states_match_oracle(device, schedule, cell, case, dtype, training):
    matches_oracle(device, schedule, cell, case, dtype, training, {})


def can_recompute(cell):
    return "before" not in cell


# Every cell in one schedule (the gates come back before the schedules differ), then the others.
RECOMPUTED = [
    *itertools.product(["cta"], [c for c in REGULARISED if can_recompute(c)], [CASES[2]], [torch.float32], [True]),
    *itertools.product(SCHEDULES[1:], ["lstm", "gru", "slstm", "lstm_norm"], [CASES[2]], [torch.float32], [True]),
    *itertools.product(["cta"], ["lstm", "gru"], CASES[1:2], [torch.float32, torch.float64, torch.bfloat16], [False]),
    *itertools.product(["cta"], ["slstm", "lstm_norm", "gru_norm"], CASES[2:3], list(TOLERANCE)[1:], [False]),
    *itertools.product(["cta"], ["lstm_peephole", "gru", "slstm", "lstm_norm"], INITIAL, [torch.float32], [True]),
    *itertools.product(["cluster"], ["lstm", "lstm_norm"], cases.PROJECTED[1::3], [torch.float32], [True]),
    *itertools.product(["cta"], ["lstm", "lstm_norm"], cases.PROJECTED[3:4], [torch.float64, torch.bfloat16], [False]),
]


@pytest.mark.parametrize(
    ("schedule", "cell", "case", "dtype", "training"),
    RECOMPUTED,
    ids=[f"{s}-{c}-{k}-{str(d)[6:]}-{'training' if t else 'eval'}" for s, c, k, d, t in RECOMPUTED],
)
def test_recomputed_gates_match_oracle(device, schedule, cell, case, dtype, training):
    matches_oracle(device, schedule, cell, case, dtype, training, {"backprop": Backprop(checkpoint_every=1)})
    shape = (cell, case.T, case.B, case.H, case.P, case.D)
    whole, small = _cuda_kernels.reserve_shape(*shape), _cuda_kernels.reserve_shape(*shape, recompute=True)
    assert small[3] == ops.CELLS[cell][1] - 1 + (case.P > 0) < whole[3]
    if dtype is torch.float64:
        inputs = on(device, cases.make(cell, Case(3, 2, 2, 3), dtype))
        found = []
        for layer in (partial(cases.kernel, backprop=Backprop(checkpoint_every=1)), cases.oracle):
            (g,) = torch.autograd.grad((layer(inputs)["y"] ** 3).sum(), inputs.x, create_graph=True)
            found.append(torch.autograd.grad(g.square().sum(), list(inputs), materialize_grads=True))
        assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*found))


@pytest.mark.parametrize("dtype", list(TOLERANCE)[2:], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("cell", ["slstm", "slstm_exponential"])
def test_recomputed_gates_survive_a_rounded_exponent(device, cell, dtype):
    # Near 60 the steps of bfloat16 are 1/4: the gates of a rounded m would be wrong by a factor of exp(1/8).
    inputs = cases.make(cell, CASES[2], dtype)
    with torch.no_grad():
        for name, t in inputs.named().items():
            if name.startswith("b_ih"):
                t[: CASES[2].H] += 60
        inputs.states[3] += 60
    own = on(device, inputs)
    got, want = results(own, backprop=Backprop(checkpoint_every=1)), results(own)
    cases.assert_close(got, want, TOLERANCE[dtype]["gradient"])


# Every cell in one schedule, where a product is alone and where there are two in all of them.
CUT = [
    *itertools.product(
        ["cta"], [c for c in REGULARISED if c not in SAME_BUT_FOR_AN_ACTIVATION], CASES[2:3], [torch.float32]
    ),
    *itertools.product(SCHEDULES[1:], ["lstm", "gru_reset_before"], CASES[2:3], [torch.float32]),
    *itertools.product(["cta"], ["lstm", "gru"], CASES[2:3], [torch.float64, torch.bfloat16]),
    *itertools.product(["cta"], ["lstm", "gru_reset_before"], INITIAL[:1], [torch.float32]),
]


@pytest.mark.parametrize(
    ("schedule", "cell", "case", "dtype"), CUT, ids=[f"{s}-{c}-{k}-{str(d)[6:]}" for s, c, k, d in CUT]
)
def test_clipped_and_detached_gradients_match_oracle(device, schedule, cell, case, dtype):
    shape = (case.B, case.T) if case.batch_first else (case.T, case.B)
    detach_mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)).to(device) < 0.3
    clip = 0.0 if cell in NORMALISED else 0.05
    matches_oracle(device, schedule, cell, case, dtype, True, {"backprop": Backprop(0, clip, detach_mask)})
    if (schedule, dtype) == ("cta", torch.float32) and can_recompute(cell):
        matches_oracle(device, schedule, cell, case, dtype, True, {"backprop": Backprop(1, clip, detach_mask)})
    if cell == "lstm" and dtype is torch.float32 and case.H > 8:
        matches_oracle(device, schedule, cell, cases.PROJECTED[1], dtype, True, {"backprop": Backprop(0, 0.05)})


def matches_oracle(device, schedule, cell, case, dtype, training, options):
    inputs = cases.make(cell, case, dtype)
    noise = cases.noise_for(cell, case, training, dtype, not case.P, 0.25)
    backprop = options.get("backprop")
    states = ops.CELLS[cell][1] == 2 or (ops.CELLS[cell][1] > 2 and not (backprop and backprop.checkpoint_every))
    exact = inputs.to(torch.float64)
    want = cases.oracle(exact, noise, states, options.get("backprop"))
    want |= cases.gradients(exact, want)
    own = on(device, inputs)
    if noise.h_mask is not None:
        noise = noise._replace(h_mask=noise.h_mask.to(device))
    got = results(own, schedule, noise=noise, states=states, **options)
    for kind, chosen in (("output", lambda name: name[0] != "d"), ("gradient", lambda name: name[0] == "d")):
        cases.assert_close(*({k: v for k, v in of.items() if chosen(k)} for of in (got, want)), TOLERANCE[dtype][kind])
    with torch.no_grad():
        inference = cases.kernel(own, schedule=schedule, noise=noise, states=states)
    assert all(torch.equal(inference[name].cpu(), got[name]) for name in inference)


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "gru"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_same_units_are_hit_as_on_the_cpu(device, schedule, cell):
    inputs = cases.make(cell, Case(6, 9, 5, 40, D=2))
    noise = cases.noise_for(cell, inputs.case, True, torch.float32, candidate_dropout=0.3)
    own = on(device, inputs)
    moved = noise._replace(h_mask=noise.h_mask.to(device))
    keep, gates = ops.Keep(gates=True), {}
    options = {"directions": 2, "noise": moved, "keep": keep}
    y, _ = ops.rnn_layer(cell, own.x, own.weights, own.states, schedule=schedule, **options)
    gates["cuda"], found = keep.gates, {"y": y, "c": keep.c}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backends, "kernels_of", lambda t: _backends._kernels)
        y, _ = ops.rnn_layer(cell, inputs.x, inputs.weights, inputs.states, **options | {"noise": noise})
    gates["cpu"], wanted = keep.gates, {"y": y, "c": keep.c}
    cases.assert_close({"gates": gates["cuda"].cpu()}, {"gates": gates["cpu"]}, TOLERANCE[torch.float32]["output"])
    for name, rate in zip(("y", "c"), noise.zoneout):
        if found[name] is None:
            continue
        kept = [(t[1:] == t[:-1]).cpu() for t in (found[name], wanted[name])]
        assert torch.equal(*kept), name
        assert abs(kept[0].double().mean() - rate) < 0.05, name
