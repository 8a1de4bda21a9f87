"""The kernels' exp, tanh, sigmoid and log(1 + x) in float32: error bounds, range, symmetry, special values."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn import _core

# Largest error in units in the last place, as stated beside the code (csrc/cpu/vec.h).
BOUND_ULP = {"tanh": 3.0, "sigmoid": 6.0}


def run(name, x):
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    _core.activation(name, x.size, x.ctypes.data, y.ctypes.data)
    return y


def exact(name, x):
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        return np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", BOUND_ULP)
def test_error_over_all_exponents(isa, name):
    # Every 1021st float32 (a prime, so that the low bits vary), both signs: two million points.
    bits = np.arange(0, 0x7F800000, 1021, dtype=np.uint32)
    for x in (bits.view(np.float32), -bits.view(np.float32)):
        y, want = run(name, x), exact(name, x)
        normal = np.abs(want) > 1.2e-38  # below, results may be flushed to zero
        ulp = np.abs(y[normal] - want[normal]) / np.spacing(np.abs(want[normal]).astype(np.float32))
        at = int(ulp.argmax())
        assert ulp[at] <= BOUND_ULP[name], (x[normal][at], ulp[at])
        assert np.abs(y[~normal]).max(initial=0) <= 1.3e-38
        assert (np.abs(y) <= 1).all() and (name == "tanh" or (y >= 0).all())


def test_log1p_of_what_a_sigmoid_needs(isa):
    x = np.concatenate([np.linspace(0, 1, 1_000_003), np.exp(-np.linspace(0, 87, 100_003))]).astype("f")
    y, want = run("log1p", x), np.log1p(x.astype(np.float64))
    assert (np.abs(y - want) <= 3 * np.spacing(want.astype("f"))).all()
    assert run("log1p", [0.0])[0] == 0 and np.isnan(run("log1p", [np.nan])[0])


def test_tanh_is_odd(isa):
    x = np.random.default_rng(0).standard_normal(100003).astype("f") * 3
    assert np.array_equal(run("tanh", -x), -run("tanh", x))


def test_special_values(isa):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], "f")
    tanh, sigmoid = run("tanh", x), run("sigmoid", x)
    assert tanh[0] == 1 and tanh[1] == -1 and np.isnan(tanh[2])
    assert not np.signbit(tanh[3]) and np.signbit(tanh[4]) and not tanh[3:].any()
    assert sigmoid[0] == 1 and sigmoid[1] <= 1.3e-38 and np.isnan(sigmoid[2]) and (sigmoid[3:] == 0.5).all()
