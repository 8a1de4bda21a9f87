"""Fixtures for every test. torch is imported where a fixture needs it: tests that need it skip without it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastrnn import _core


@pytest.fixture(scope="session")
def cuda_host():
    """The CUDA engine with its kernels compiled for the CPU, see tests/cuda_host/."""
    source = Path(__file__).resolve().parent / "cuda_host"
    sanitize = os.environ.get("FASTRNN_SANITIZE", "OFF")
    build = source.parents[1] / "build" / ("cuda_host_sanitize" if sanitize == "ON" else "cuda_host")
    beside = Path(sys.executable).parent
    cmake, ninja = (shutil.which(tool, path=f"{beside}{os.pathsep}{os.environ['PATH']}") for tool in ("cmake", "ninja"))
    if not cmake or importlib.util.find_spec("pybind11") is None:
        pytest.skip("cmake and pybind11 are needed to build the emulation of CUDA")
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "PYTHONPATH")}
    configure = [cmake, "-S", source, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DFASTRNN_SANITIZE={sanitize}"] + (
        ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    )
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "tests.lock", "w") as lock:  # tests in several processes share the build
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(configure, env=environment, capture_output=True, text=True)
        if "CUDA_INCLUDE_DIR" in done.stderr:
            pytest.skip("the headers of a CUDA toolkit are needed to build its emulation")
        assert done.returncode == 0, done.stderr
        command = [cmake, "--build", build, "--parallel", "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
    path = build / f"_cuda_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("_cuda_host", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def host(cuda_host, monkeypatch):
    """Layers and attention of CPU tensors go through the CUDA engine, by emulation."""
    from fastrnn import _backends, _cuda_attention, _cuda_decoder, _cuda_kernels, ops

    monkeypatch.setattr(_backends, "kernels_of", lambda x: _cuda_kernels)
    monkeypatch.setattr(_backends, "attention_of", lambda x: _cuda_attention)
    monkeypatch.setattr(_backends, "decoder_of", lambda x: _cuda_decoder)
    monkeypatch.setattr(ops, "prepare", lambda *_: None)
    monkeypatch.setattr(_cuda_kernels, "module", lambda: cuda_host)
    monkeypatch.setattr(_cuda_kernels, "place_of", lambda x: (0, 0))
    _cuda_kernels._plan.cache_clear()
    yield cuda_host
    cuda_host.set_seed(0)
    cuda_host.set_push_offset(0)
    cuda_host.set_wrong_lane(0)
    cuda_host.set_largest_cluster(16)
    cuda_host.set_capability(9)
    cuda_host.set_old_driver(False)
    cuda_host.set_launches_fail(False)
    cuda_host.set_wait_limit(2.0)
    for site in range(cuda_host.SITES):
        cuda_host.leave_out_barrier(site, False)
    _cuda_kernels._plan.cache_clear()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the tensors of a test lie; the emulation takes those of the CPU."""
    return _device(request)


def _device(request):
    if request.param == "emulated":
        request.getfixturevalue("host")
        return "cpu"
    import torch

    from fastrnn import _devices

    if not torch.cuda.is_available() or _devices.why_not("cuda"):
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture(params=_core.isas())
def isa(request):
    """Runs the test once for each instruction set of this machine."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(params=[*_core.isas(), "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request):
    """Runs the test on each instruction set, on the emulated CUDA engine and on a GPU; gives the tensors' device."""
    if request.param not in _core.isas():
        yield _device(request)
        return
    before = _core.isa()
    _core.set_isa(request.param)
    yield "cpu"
    _core.set_isa(before)


@pytest.fixture(autouse=True)
def same_every_time():
    """Fixed seeds, and the engine's settings put back."""
    random.seed(0)
    threads = _core.num_threads()
    try:
        import numpy

        numpy.random.seed(0)
    except ImportError:
        pass
    try:
        import torch

        torch.manual_seed(0)
    except ImportError:
        pass
    yield
    if _core.num_threads() != threads:
        _core.set_num_threads(threads)
