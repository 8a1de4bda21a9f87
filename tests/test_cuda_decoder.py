"""The attention decoder's CUDA kernels: what tests/test_decoder.py and test_generation.py do not ask of every engine."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cases  # noqa: E402
from test_decoder import TOLERANCE, Case, kernel, make, oracle, results  # noqa: E402
from test_generation import make as make_generation  # noqa: E402

# More rows than a tile, more keys than a chunk, more columns than a block has.
LARGE = Case(9, 3, 300, 7, 37, 64, 70, lengths=True)


@pytest.mark.parametrize(
    "case",
    [LARGE, LARGE._replace(cell="gru", score="dot"), LARGE._replace(order="bahdanau")],
    ids=str,
)
def test_matches_the_oracle_in_several_blocks(device, case):
    named, lengths = make(case, torch.float32, device)
    exact = {name: t.detach().double().requires_grad_() for name, t in named.items()}
    got, want = results(kernel, case, named, lengths), results(oracle, case, exact, lengths)
    cases.assert_close(got, want, TOLERANCE[torch.float32])


def test_training_and_inference_give_the_same_bits(device):
    named, lengths = make(LARGE, torch.float32, device)
    training = kernel(LARGE, named, lengths)
    with torch.no_grad():
        inference = kernel(LARGE, named, lengths)
    assert all(torch.equal(training[name], inference[name]) for name in training)


def generated(device):
    decoder, memory, lengths, state = make_generation({}, torch.float32, V=300, B=3, device=device)
    options = {"start": 1, "end": 3, "max_length": 40, "lengths": lengths}  # more steps than between two looks
    found = [
        decoder.generate(memory, state, **options),
        decoder.generate(memory, state, **options, temperature=1.0, top_k=7, seed=1),
        decoder.beam_search(memory, state, **(options | {"max_length": 4}), beams=3, n_best=2),
    ]
    return [t for f in found for t in f]


def test_any_order_of_threads_gives_the_same_bits(host):
    named, lengths = make(LARGE, torch.float32)
    first, tokens = results(kernel, LARGE, named, lengths), generated("cpu")
    for seed in range(1, 4):
        host.set_seed(seed)
        again = results(kernel, LARGE, named, lengths)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert all(torch.equal(a, b) for a, b in zip(tokens, generated("cpu")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_repeats_give_the_same_bits():
    named, lengths = make(LARGE, torch.float32, "cuda")
    first, tokens = results(kernel, LARGE, named, lengths), generated("cuda")
    for _ in range(20):
        again = results(kernel, LARGE, named, lengths)
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(a, b) for a, b in zip(tokens, generated("cuda")))


SITES = {"warps": 4, "tile": 5, "sums": 6}  # device::Site


@pytest.mark.parametrize("site", SITES)
def test_a_missing_barrier_is_noticed(host, site):
    named, lengths = make(LARGE, torch.float32)
    right = kernel(LARGE, named, lengths)
    host.leave_out_barrier(SITES[site], True)
    for seed in range(1, 20):
        host.set_seed(seed)
        again = kernel(LARGE, named, lengths)
        if not all(torch.equal(right[name], again[name]) for name in right):
            return
    pytest.fail("every order of the threads gave the right result")


def test_a_wrong_lane_is_noticed(host):
    named, lengths = make(LARGE, torch.float32)
    right = kernel(LARGE, named, lengths)
    host.set_wrong_lane(1)
    assert not torch.allclose(kernel(LARGE, named, lengths)["outputs"], right["outputs"], atol=1e-3)


def test_what_the_machine_lacks_is_named(host):
    named, lengths = make(LARGE, torch.float32)
    outputs = kernel(LARGE, named, lengths)["outputs"]
    decoder, memory, *_ = make_generation({})
    host.set_launches_fail(True)
    lacks = "cudaError: the emulated launch has no resources"
    with pytest.raises(RuntimeError, match=f"decoder_forward: {lacks}"):
        kernel(LARGE, named, lengths)
    with pytest.raises(RuntimeError, match=f"decoder_backward: {lacks}"):
        outputs.sum().backward()
    with pytest.raises(RuntimeError, match=f"decoder_generate: {lacks}"):
        decoder.generate(memory, start=1, end=2, max_length=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graph_capture_and_no_synchronisation():
    named, lengths = make(LARGE, torch.float32, "cuda")
    with torch.no_grad():
        want = kernel(LARGE, named, lengths)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            kernel(LARGE, named, lengths)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = kernel(LARGE, named, lengths)
        graph.replay()
    assert all(torch.equal(got[name], want[name]) for name in want)
