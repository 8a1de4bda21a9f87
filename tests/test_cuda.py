"""The CUDA engine against the oracle: on the CPU by emulation (tests/cuda_host/), and on a GPU where there is one."""

from __future__ import annotations

import functools
import itertools

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

from fastrnn import nn  # noqa: E402

CHIPS = {
    "H200": {"multiprocessors": 132, "shared_bytes": 227 * 1024, "largest_cluster": 16, "cooperative": True},
    "A100": {"multiprocessors": 108, "shared_bytes": 163 * 1024, "largest_cluster": 1, "cooperative": True},
    "small": {"multiprocessors": 7, "shared_bytes": 99 * 1024, "largest_cluster": 1, "cooperative": True},
    "slice": {"multiprocessors": 16, "shared_bytes": 227 * 1024, "largest_cluster": 8, "cooperative": False},
}

EVERY = [
    (schedule, cell, case, dtype)
    for dtype in TOLERANCE
    for cell, case, schedule in itertools.product(CELLS, CASES, schedules_for(dtype))
    # Activations differ in the cell alone: one of them in full, the others once.
    if cell not in SAME_BUT_FOR_AN_ACTIVATION or (case is CASES[2] and dtype is torch.float32)
    # Norms magnify the rounding of narrow types: by 316, 1/deviation, where there is a single unit.
    if cell not in NORMALISED or dtype is torch.float32 or case is CASES[2]
    # A cluster or a grid has two CTAs or more, of eight units or more.
    if schedule not in ("cluster", "grid") or case.H > 8
    # 100 units of float64, or with norms, do not fit into the shared memory of one CTA.
    if schedule != "cta" or case.H < 100 or (dtype is not torch.float64 and cell not in NORMALISED)
] + [
    (schedule, cell, case, dtype)
    for dtype in TOLERANCE
    for cell, case, schedule in itertools.product(cases.WITH_C, cases.PROJECTED, schedules_for(dtype))
    if cell not in SAME_BUT_FOR_AN_ACTIVATION and (cell not in NORMALISED or (dtype is torch.float32 and case.H > 2))
    if schedule not in ("cluster", "grid") or case.H > 8
]


@functools.lru_cache(maxsize=4)  # the schedules come one after the other
def expected(cell, case, dtype):
    exact = cases.make(cell, case, dtype).to(torch.float64)
    want = cases.oracle(exact)
    return {name: t.detach() for name, t in (want | cases.gradients(exact, want)).items()}


@pytest.mark.parametrize(
    ("schedule", "cell", "case", "dtype"), EVERY, ids=[f"{s}-{c}-{k}-{str(d)[6:]}" for s, c, k, d in EVERY]
)
def test_matches_oracle(device, schedule, cell, case, dtype):
    inputs, want = cases.make(cell, case, dtype), expected(cell, case, dtype)
    got = results(on(device, inputs), schedule)
    magnified = cases.magnified(cell, case)
    cases.assert_close({k: v for k, v in got.items() if k[0] != "d"}, {k: v for k, v in want.items() if k[0] != "d"},
                       TOLERANCE[dtype]["output"])  # fmt: skip
    cases.assert_close({k: v for k, v in got.items() if k[0] == "d"}, {k: v for k, v in want.items() if k[0] == "d"},
                       magnified * TOLERANCE[dtype]["gradient"])  # fmt: skip
    with torch.no_grad():  # the inference path keeps no gates
        inference = cases.kernel(on(device, inputs), schedule=schedule)
    assert all(torch.equal(inference[name].cpu(), got[name]) for name in inference)


MIXED = Case(5, 9, 7, 33, D=2, ragged=True, reset=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "lstm_norm"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_order_of_threads_gives_the_same_bits(host, schedule, cell, dtype):
    inputs = cases.make(cell, MIXED, dtype)
    first = results(inputs, schedule)
    noise = cases.noise_for(cell, MIXED, True, dtype)
    special = results(inputs, schedule, noise=noise)
    for seed in range(1, 9):
        host.set_seed(seed)
        again = results(inputs, schedule)
        if seed == 8:
            other = results(inputs, schedule, noise=noise)
            assert all(torch.equal(other[name], special[name]) for name in special)
        assert all(torch.equal(again[name], first[name]) for name in first), seed


# ---- tests of these tests: a seeded bug has to show

FAULTS = [("lstm", *of) for of in [
    ("cta", 0), ("grid", 0),  # weights and states are in place (a cluster's own barrier says so too)
    ("cta", 1), ("cluster", 1), ("grid", 1), ("stepwise", 1),  # all sums are there
    ("cta", 2), ("cluster", 2), ("grid", 2),  # everything is written before it is sent
    ("cluster", 3), ("grid", 3),  # everything has arrived, and nobody needs what is overwritten next
]] + [
    # what each unit adds to the norms of its row is there, and what all units make of it
    (cell, schedule, site) for cell in NORMALISED for schedule in SCHEDULES for site in (7, 8)
]  # fmt: skip


@pytest.mark.parametrize(("cell", "schedule", "site"), FAULTS)
def test_a_missing_barrier_is_noticed(host, cell, schedule, site):
    # With 32 units in a CTA, as of 100, each warp would read of a row what it has written itself.
    inputs = cases.make(cell, Case(4, 9, 5, 40 if cell in NORMALISED else 100), torch.bfloat16)
    right = results(inputs, schedule)
    host.leave_out_barrier(site, True)
    for seed in range(1, 20):
        host.set_seed(seed)
        try:
            found = results(inputs, schedule)
        except RuntimeError:
            return
        if any(not torch.equal(found[name], right[name]) for name in right):
            return
    pytest.fail("every order of the threads gave the right result")


def test_a_wrong_lane_is_noticed(host):
    inputs = cases.make("gru_norm", Case(4, 9, 5, 40), torch.bfloat16)  # on tensor cores only norms shuffle
    right = results(inputs, "stepwise")
    host.set_wrong_lane(1)
    found = results(inputs, "stepwise")
    assert not torch.equal(found["y"], right["y"])


@pytest.mark.parametrize("cell", ["lstm", "gru_norm"])
def test_a_wrong_offset_is_noticed(host, cell):
    inputs = cases.make(cell, Case(4, 9, 5, 40))
    right = results(inputs, "cluster")
    host.set_push_offset(4)
    found = results(inputs, "cluster")
    assert not torch.equal(found["y"], right["y"])


@pytest.mark.parametrize("schedule", ["cluster", "grid"])
def test_waits_are_bounded_and_reported(host, schedule):
    inputs = cases.make("gru", Case(4, 3, 5, 40))
    right = results(inputs, schedule)
    host.set_wait_limit(0)
    with torch.no_grad():
        cases.kernel(inputs, schedule=schedule)  # finishes; a call does not wait for the device, so it cannot know
    with pytest.raises(RuntimeError, match="gave up waiting for its other thread blocks.*expected all of them to run"):
        host.check_waits()
    cases.kernel(inputs, schedule=schedule)
    with pytest.raises(RuntimeError, match="gave up waiting"):
        cases.kernel(inputs, schedule=schedule)  # the next call reports it as well
    host.set_wait_limit(2.0)
    again = results(inputs, schedule)  # reported once; the engine goes on
    assert all(torch.equal(again[name], right[name]) for name in right)


# ---- the plan

SHAPES = [(B, H) for B in (1, 7, 8, 33, 128, 1000) for H in (1, 17, 64, 192, 512, 1024, 2048, 4096)]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chip", CHIPS)
def test_plan_fits_the_chip(cuda_host, chip, dtype, backward):
    has = CHIPS[chip]
    chosen = set()
    for (B, H), cell, D in itertools.product(SHAPES, ("lstm", "gru_reset_before", "lstm_norm"), (1, 2)):
        plan = cuda_host.plan(cell, dtype, B, H, D, backward, "", 0, has)
        chosen.add(plan.schedule)
        text = f"{cell} B={B} H={H} D={D}: {plan}"
        assert plan.shared_bytes <= has["shared_bytes"], text
        assert plan.ctas * plan.units >= H, text
        enough = plan.ctas // 2 if plan.schedule == "cluster" else plan.ctas - 1  # a cluster has to be whole
        assert enough * plan.units < H, text
        assert plan.groups * plan.rows >= B, text
        assert (plan.groups - 1) * plan.rows < B, text
        if plan.schedule == "cta":
            assert plan.ctas == 1, text
        if plan.schedule == "cluster":
            assert 2 <= plan.ctas <= has["largest_cluster"], text
        if plan.schedule == "grid":
            assert has["cooperative"] and plan.ctas * plan.groups * D <= has["multiprocessors"], text
        assert plan == plan and repr(plan) == repr(cuda_host.plan(cell, dtype, B, H, D, backward, "", 0, has))
    assert {"cta", "stepwise"} <= chosen
    assert ("cluster" in chosen) == (has["largest_cluster"] > 1)


def test_weights_stay_on_the_chip_as_far_as_it_has_room(cuda_host):
    def schedule(dtype, H, B=8):
        return cuda_host.plan("lstm", dtype, B, H, 1, False, "", 0, CHIPS["H200"]).schedule

    assert [schedule("bfloat16", H) for H in (64, 512, 1024, 1536, 4096)] == [
        "cta", "cluster", "grid", "grid", "stepwise",
    ]  # fmt: skip
    assert [schedule("float32", H) for H in (32, 256, 1024, 4096)] == ["cta", "cluster", "grid", "stepwise"]
    for H in (600, 704, 768):  # in both directions, whether or not the units divide among 16
        for backward in (False, True):
            assert cuda_host.plan("lstm", "bfloat16", 8, H, 1, backward, "cluster", 0, CHIPS["H200"]).ctas == 16


def test_clusters_that_find_no_room_are_not_chosen(host):
    assert host.plan("lstm", "bfloat16", 8, 512, 1, False).ctas > 4
    host.set_largest_cluster(4)
    smaller = host.plan("lstm", "bfloat16", 8, 512, 1, False)
    assert smaller.schedule != "cluster" or smaller.ctas <= 4
    host.set_largest_cluster(0)
    with pytest.raises(ValueError, match="schedule is 'cluster', which cannot run"):
        host.plan("lstm", "bfloat16", 8, 512, 1, False, "cluster")


def test_a_schedule_that_cannot_run_is_refused(cuda_host):
    with pytest.raises(ValueError, match="plan: schedule is 'cta', which cannot run H=2048"):
        cuda_host.plan("lstm", "float32", 8, 2048, 1, False, "cta", 0, CHIPS["H200"])
    with pytest.raises(ValueError, match="schedule is 'cluster', which cannot run"):
        cuda_host.plan("lstm", "float32", 8, 128, 1, False, "cluster", 0, CHIPS["A100"])
    with pytest.raises(ValueError, match="plan: no schedule runs H=1000000 with B=8 on this device"):
        cuda_host.plan("lstm", "float32", 8, 1_000_000, 1, False, "", 0, CHIPS["H200"])
    with pytest.raises(ValueError, match="schedule is 'warp', expected cta, cluster, grid or stepwise"):
        cuda_host.plan("lstm", "float32", 8, 128, 1, False, "warp", 0, CHIPS["H200"])


# ---- what only a device can show


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestDevice:
    def test_graph_capture_and_other_streams(self):
        module = nn.LSTM(16, 64).cuda()
        x = torch.randn(8, 4, 16, device="cuda")
        with torch.no_grad():
            want = module(x)[0].clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                assert torch.equal(module(x)[0], want)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y, _ = module(x)
            y.zero_()
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, want)

    @pytest.mark.parametrize(
        "options", [{}, {"zoneout": 0.1, "recurrent_dropout": 0.1, "weight_dropout": 0.1}], ids=str
    )
    def test_nothing_synchronises(self, options):
        module = nn.LSTM(16, 64, **options).cuda()
        x, lengths = torch.randn(8, 4, 16, device="cuda"), torch.tensor([8, 3, 0, 5], device="cuda")

        def call():
            y, _, states = module(x, lengths=lengths, return_states=True, return_gates=True)
            (y.sum() + states.c[0].sum()).backward()

        call()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("cell", ["lstm", "gru", "lstm_norm"])
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_the_same_bits_every_time(self, schedule, cell, dtype):
        inputs = on("cuda", cases.make(cell, Case(50, 16, 32, 96), dtype))  # more of float32 do not fit into one CTA
        first = results(inputs, schedule)
        for _ in range(50):
            again = results(inputs, schedule)
            assert all(torch.equal(again[name], first[name]) for name in first)
