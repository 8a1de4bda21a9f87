"""Threads: fork, many callers, Ctrl-C, more threads than cores, floating-point mode. No torch needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from test_numpy import make

import fastrnn
import fastrnn.numpy as fnp
from fastrnn import _core, threads


def layer(H=64, I=64):
    return fnp.LSTM(make("lstm", I, H))


def x_of(T, B, I=64):
    return np.random.default_rng(6).standard_normal((T, B, I)).astype("f")


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "_explicit", True)
    _core.set_num_threads(2)


def test_fork_after_use(two_threads):
    module, x = layer(), x_of(50, 8)
    want, _ = module(x)  # the pool runs in the parent
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if np.array_equal(module(x)[0], want) else 3)
        deadline = time.monotonic() + 30
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                pytest.fail("a forked child hangs")
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(status) == 0


def test_many_callers_share_a_module(two_threads):
    module, x = layer(), x_of(20, 8)
    want, _ = module(x)
    wrong = []

    def call():
        for _ in range(50):
            if not np.array_equal(module(x)[0], want):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for t in callers:
        t.start()
    for t in callers:
        t.join()
    assert not wrong


def test_more_threads_than_cores_finish(monkeypatch):
    monkeypatch.setattr(threads, "_explicit", True)
    module, x = layer(256), x_of(30, 1)
    _core.set_num_threads(1)
    want, _ = module(x)
    _core.set_num_threads(8)
    start = time.monotonic()
    weights = [0 if w is None else w.ctypes.data for w in module._layers[0][0]]
    y, h, c = np.empty((30, 1, 256), "f"), np.empty((1, 1, 256), "f"), np.empty((1, 1, 256), "f")
    _core.rnn_forward(
        "lstm", 4, 30, 1, 64, 256, 0, 1, x.ctypes.data, 64, 64, weights, [0, 0], 0, 0, 0, 0, y.ctypes.data, 256, 256,
        [h.ctypes.data, c.ctypes.data], 0, "hidden_split", 8, None, None, False,
    )  # fmt: skip
    assert time.monotonic() - start < 20
    assert np.array_equal(y, want)


# A call of many seconds, then a short one.
INTERRUPTED = {
    "layer": """
import numpy as np, fastrnn.numpy
rng = np.random.default_rng(0)
module = fastrnn.numpy.GRU([rng.standard_normal((1536, 512)).astype("f"), rng.standard_normal((1536, 512)).astype("f")])
x = rng.standard_normal((20000, 16, 512)).astype("f")
long, short = (lambda: module(x)), (lambda: module(x[:10])[0])
""",
    "generation": """
import torch, fastrnn
decoder, memory = fastrnn.nn.AttentionDecoder(256, 256, 256, vocabulary_size=10000), torch.randn(16, 50, 256)
def generate(steps):
    return decoder.generate(memory, start=1, end=None, max_length=steps)
long, short = (lambda: generate(20000)), (lambda: generate(3).weights.numpy())
""",
}
WAITING = """
import numpy as np, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignore"
print("ready", flush=True)
try:
    long()
    print("finished")
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(np.isfinite(short()).all())
"""


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_ctrl_c_stops_a_long_call(kind):
    if kind == "generation":
        pytest.importorskip("torch")
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED[kind] + WAITING], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    rest = child.communicate(timeout=120)[0].split()
    assert rest == ["interrupted", "True"] and child.returncode == 0
    assert time.monotonic() - start < 10


def test_floating_point_mode_is_the_callers(two_threads):
    tiny = np.float32(1e-40)
    assert tiny * np.float32(1) != 0  # subnormals are alive before
    layer()(x_of(20, 8))
    assert tiny * np.float32(1) != 0 and np.all(np.full(64, 1e-40, "f") * np.float32(1) != 0)


def test_subnormal_weights_are_not_slow():
    x = x_of(50, 4)

    def seconds(module):
        found = []
        for _ in range(7):
            start = time.thread_time()
            module(x)
            found.append(time.thread_time() - start)
        return min(found)

    _core.set_num_threads(1)
    normal = seconds(layer())
    small = {k: (v * 0 + 1e-39).astype("f") for k, v in make("lstm", 64, 64).items()}
    assert seconds(fnp.LSTM(small)) < 3 * normal


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5"])
def test_bad_thread_count_in_the_environment(value):
    code = "import fastrnn; fastrnn.get_num_threads()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FASTRNN_NUM_THREADS": value}, capture_output=True, text=True
    )
    assert done.returncode == 1 and f"FASTRNN_NUM_THREADS is '{value}', expected an integer >= 1" in done.stderr


def test_thread_count_settings():
    for n in (0, -3, 1.0, "2", None, True):
        with pytest.raises(ValueError, match="expected an integer of at least 1|expected n >= 1"):
            fastrnn.set_num_threads(n)
    done = subprocess.run(
        [sys.executable, "-c", "import fastrnn; print(fastrnn.get_num_threads())"],
        env={**os.environ, "FASTRNN_NUM_THREADS": "3"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "3\n"


def test_torch_decides_unless_told_otherwise(monkeypatch):
    class FakeTorch:
        @staticmethod
        def get_num_threads():
            return 5

    monkeypatch.setattr(threads, "_explicit", False)
    assert threads.current({"torch": FakeTorch}) == 5
    assert threads.current({}) == 0
    monkeypatch.setattr(threads, "_explicit", True)
    assert threads.current({"torch": FakeTorch}) == 0


PLANS = [
    (("lstm", 4, 100, 1, 64, 64, 0, 1), 1, ("batch_split", 1)),
    (("lstm", 4, 100, 1, 256, 256, 0, 1), 2, ("hidden_split", 2)),
    (("lstm", 4, 100, 32, 256, 256, 0, 1), 2, ("batch_split", 2)),
    (("rnn_tanh", 4, 100, 1, 8, 8, 0, 1), 64, ("batch_split", 1)),
    (("lstm", 4, 100, 128, 64, 64, 0, 1), 16, ("batch_split", 16)),
]


@pytest.mark.parametrize(("shape", "most", "expected"), PLANS, ids=[f"{s[0]}-B{s[3]}-H{s[5]}" for s, _, _ in PLANS])
def test_plan(shape, most, expected):
    plan = _core.plan(*shape, False, most)
    assert (plan["schedule"], plan["threads"]) == expected
    assert 1 <= plan["chunk_steps"] <= 100


def test_backward_chunks_do_not_depend_on_threads():
    found = {_core.plan("gru", 4, 100, 7, 64, 64, 0, 1, True, n)["chunk_steps"] for n in range(1, 9)}
    assert len(found) == 1
    with pytest.raises(ValueError, match="schedule is 'x', expected batch_split or hidden_split"):
        _core.plan("gru", 4, 100, 7, 64, 64, 0, 1, True, 2, "x")
