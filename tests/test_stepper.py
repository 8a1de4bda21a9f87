"""The stepper: the same bits as the whole sequence, its state, its errors, and no allocation or system call per step."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from test_numpy import CLASSES, WITH_C, make, states_of

from fastrnn import DTypeError, ShapeError, _core


def build(cell, layers=2, P=0, dtype=np.float32, I=7, H=33):
    cls, kw = CLASSES[cell]
    return cls(make(cell, I, H, layers, 1, P, dtype=dtype), **kw)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("cell", CLASSES)
def test_same_bits_as_the_sequence(isa, cell, B, dtype):
    module = build(cell, P=5 if cell in WITH_C else 0)
    if dtype != np.float32:
        module = build(cell, dtype=dtype)
    x = np.random.default_rng(3).standard_normal((9, B, 7)).astype(dtype)
    step = module.stepper(B)
    y, last = module(x)
    for t in range(9):
        assert np.array_equal(step(x[t]), y[t]), t
    several = isinstance(last, tuple)
    assert isinstance(step.state, tuple) == several == (_core.CELLS[cell]["states"] > 1)
    for got, want in zip(step.state if several else (step.state,), last if several else (last,)):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("cell", CLASSES)
def test_same_bits_as_the_torch_module(cell):
    torch = pytest.importorskip("torch")
    import fastrnn.nn

    cls, kw = CLASSES[cell]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module = getattr(fastrnn.nn, cls.__name__)(7, 17, 2, dtype=dtype, **kw)
        x = torch.randn(6, 2, 7, dtype=dtype)
        step = module.stepper(2)
        assert step(x[0]).dtype == dtype
        if dtype != torch.bfloat16:  # there the module rounds between layers
            step.reset()
            y, _ = module(x)
            assert torch.equal(torch.stack([step(x_t).clone() for x_t in x]), y.detach())


@pytest.mark.parametrize("cell", CLASSES)
def test_state_can_be_read_set_and_reset(cell):
    step, rng = build(cell).stepper(3), np.random.default_rng(4)
    x = rng.standard_normal((5, 3, 7)).astype("f")
    start = states_of(cell, 2, 3, 33, 0, np.float32, rng)
    start = tuple(start) if len(start) > 1 else start[0]
    step.state = start
    first = [step(v).copy() for v in x]
    step.state = start
    assert np.array_equal(np.stack(first), np.stack([step(v).copy() for v in x]))
    assert np.array_equal(first, build(cell)(x, start)[0])
    step.reset(np.array([False, True, False]))
    h = step.state[0] if isinstance(step.state, tuple) else step.state
    assert not h[:, 1].any() and h[:, 0].any() and h[:, 2].any()
    step.reset()
    assert not np.any(step.state)


def test_unbatched_and_strided_x():
    step = build("gru").stepper()
    x = np.random.default_rng(5).standard_normal(14).astype("f")
    want = step(np.ascontiguousarray(x[None, ::2])).copy()
    step.reset()
    got = step(x[::2])
    assert got.shape == (33,) and np.array_equal(got, want[0])


BAD = {
    "list": ([1.0], DTypeError, "x is a list"),
    "dtype": (np.ones((2, 7)), DTypeError, "x has dtype float64, expected float32"),
    "big_endian": (np.ones((2, 7), ">f4"), DTypeError, "x has dtype"),
    "batch": (np.ones((3, 7), "f"), ShapeError, r"x has shape \(3, 7\), expected \(B, I\) = \(2, 7\)"),
    "inputs": (np.ones((2, 6), "f"), ShapeError, "x has shape"),
    "rank": (np.ones(7, "f"), ShapeError, "x has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_x(name):
    x, error, text = BAD[name]
    with pytest.raises(error, match=text):
        build("gru").stepper(2)(x)


def test_bad_settings():
    step = build("lstm").stepper(2)
    with pytest.raises(ShapeError, match="state has 1 entries, expected 2"):
        step.state = np.zeros((2, 2, 33), "f")
    with pytest.raises(ShapeError, match="c0 has shape"):
        step.state = (np.zeros((2, 2, 33), "f"), np.zeros((2, 2, 32), "f"))
    with pytest.raises(DTypeError, match="mask has dtype"):
        step.reset(np.ones(2))
    with pytest.raises(ShapeError, match="mask has shape"):
        step.reset(np.ones(3, bool))
    with pytest.raises(ShapeError, match="B = 0"):
        build("lstm").stepper(0)
    with pytest.raises(ShapeError, match=r"batch_size is 1180591620717411303424, expected less than 2\^31"):
        build("lstm").stepper(2**70)
    with pytest.raises(DTypeError, match="x is a MaskedArray, expected a numpy.ndarray"):
        step(np.ma.masked_array(np.zeros((2, step._shape[1]), "f")))
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):  # the state would be shared, or lost
        with pytest.raises(TypeError, match="stepper: cannot be copied or pickled, expected a new one"):
            copied(step)
    with pytest.raises(DTypeError, match="batch_size is a float"):
        build("lstm").stepper(1.0)


COUNTER = r"""
#include <atomic>
#include <cstddef>
extern "C" void* __libc_malloc(size_t);
extern "C" { std::atomic<long> calls{0}; long malloc_calls() { return calls; }
void* malloc(size_t n) { ++calls; return __libc_malloc(n); } }
"""

STEPS = """
import ctypes, sys, numpy as np, fastrnn.numpy
rng = np.random.default_rng(0)
named = {"weight_ih_l0": rng.standard_normal((256, 64)).astype("f"), "weight_hh_l0": rng.standard_normal((256, 64)).astype("f")}
step = fastrnn.numpy.LSTM(named).stepper(4)
x, y = np.ones((4, 64), "f"), np.ones((4, 64), "f")
run, a, b = step._stepper.step, x.ctypes.data, y.ctypes.data
run(a, b)
counter = ctypes.CDLL(sys.argv[1]).malloc_calls if len(sys.argv) > 1 else (lambda: 0)
before = counter()
for _ in range(10000):
    run(a, b)
print(counter() - before)
"""


def test_no_allocation_in_ten_thousand_steps(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++ for the allocation counter")
    source, library = tmp_path / "counter.cpp", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    env = {**__import__("os").environ, "LD_PRELOAD": str(library)}
    if "libasan" in __import__("os").environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer replaces malloc itself")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STEPS), str(library)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 50, "a step allocates"  # the loop's own integers come from Python's free lists


def test_no_system_call_in_ten_thousand_steps(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    log = tmp_path / "calls"
    command = ["strace", "-f", "-o", str(log), sys.executable, "-c", textwrap.dedent(STEPS)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    last = log.read_text().splitlines()
    assert len(last) < 10000, "a step makes a system call"


def test_plan_is_not_asked_for_cells_that_do_not_exist():
    with pytest.raises(ValueError, match="cell is 'lstn', expected one of"):
        _core.Stepper("lstn", 4, 1, [(1, 1, 0)], [0] * 5, (0.0, 0.0))
