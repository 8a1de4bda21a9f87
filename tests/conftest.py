"""Fixtures for every test. No torch in here: the tests that need it skip without it."""

from __future__ import annotations

import random

import pytest

from fastrnn import _core


@pytest.fixture(params=_core.isas())
def isa(request):
    """Runs the test once for each instruction set of this machine."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
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
