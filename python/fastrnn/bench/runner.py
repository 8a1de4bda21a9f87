"""Measures one case: build everyone, check everyone against float64, then time them interleaved."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import fastrnn

from . import peers as registry
from .cases import Case, flops_per_step, make_data
from .ceilings import Ceiling, cache_sizes, cpu_name, floor_us_per_step
from .timing import Samples, Stat, allowed_cpus, interleave, paired_ratio, pinned, summarize

LIMIT = 1e-4  # float32 over some hundred steps stays far below; a wrong gate is far above


class WrongResult(RuntimeError):
    """fastrnn disagrees with the float64 result, so its time means nothing."""


@dataclass
class Point:
    """A measured case; `ratio` is peer time / own time, above 1 where fastrnn is faster."""

    case: Case
    us_per_step: dict[str, Stat]
    ratio: dict[str, Stat]
    best_peer: str | None
    max_difference: dict[str, float]
    gflops: float
    floor_us: float | None
    fraction: float | None
    rounds: int
    settle_ms: float  # longest wait for an idle pool to stop spinning
    others: float | None  # share of all CPU time that other processes took meanwhile
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        data = asdict(self)
        data["ratio_best"] = data["ratio"].get(self.best_peer)
        return data


def measure(
    case: Case,
    peers: list[str],
    ceiling: Ceiling | None = None,
    budget_s: float = 0.25,
    any_threads: tuple[int, ...] = (),
    exact: dict | None = None,
) -> Point:
    """Measure fastrnn and `peers` on one case.

    Args:
        case: what to run.
        peers: names from `peers.PEERS`; those that cannot do the case are left out.
        ceiling: limits for the case's thread count, None leaves floor and fraction empty.
        budget_s: seconds of timing per contestant.
        any_threads: peers also run with these thread counts, named "torch@1"; the default is the case's own.
        exact: result of `peers.reference`, computed here when absent.

    Returns:
        The measured Point.

    Raises:
        WrongResult: fastrnn differs from the float64 result by more than 1e-4.
    """
    data = make_data(case)
    names = [name for name in peers if registry.supports(name, case)]
    if case.variant != "dense":
        names.append(registry.OWN_DENSE)
    exact = exact or registry.reference(case, data)
    with pinned(case.threads) as cpus:
        contestants = {registry.OURS: registry.build(registry.OURS, case, data)}
        for name in names:
            for n in any_threads if any_threads and name != registry.OWN_DENSE else (case.threads,):
                label = f"{name}@{n}" if any_threads else name
                contestants[label] = registry.build(name, case, data, n)
        differences, notes = _check(case, contestants, exact)
        activate = {name: _activation(c, cpus) for name, c in contestants.items()}
        samples = interleave({name: c.run for name, c in contestants.items()}, activate, budget_s)
    return _point(case, data.active, samples, ceiling, differences, notes)


def _activation(contestant, cpus):
    """openvino may move the calling thread, so the caller's mask is put back before each turn."""

    def activate():
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpus)
        contestant.activate()

    return activate


def _check(case, contestants, exact) -> tuple[dict[str, float], list[str]]:
    """Run everyone once; a peer that is wrong is dropped with a note, we must not be."""
    differences, notes = {}, []
    for name in list(contestants):
        contestant = contestants[name]
        contestant.activate()
        out = contestant.run()
        if name == registry.OWN_DENSE:
            continue
        differences[name] = registry.worst_difference(contestant.result(out), exact)
        if differences[name] <= LIMIT:
            continue
        text = f"{name}: {case}: differs from float64 by {differences[name]:.1e}, expected at most {LIMIT:.0e}"
        if name == registry.OURS:
            raise WrongResult(text)
        notes.append(f"left out {text}")
        del contestants[name]
    return differences, notes


def _point(case: Case, active: float, samples: Samples, ceiling: Ceiling | None, differences, notes) -> Point:
    """Medians, paired ratios and the distance to the ceiling; `best_peer` is the peer with the lowest median."""
    ours = samples.seconds[registry.OURS]
    us = {name: summarize(values).scaled(1e6 / case.steps) for name, values in samples.seconds.items()}
    ratio = {name: paired_ratio(values, ours) for name, values in samples.seconds.items() if name != registry.OURS}
    rivals = [name for name in ratio if name != registry.OWN_DENSE]
    own_us = us[registry.OURS].median
    floor = None
    if ceiling is not None:
        sizes = case.cell, case.mode, case.hidden, case.batch
        floor = floor_us_per_step(*sizes, ceiling, active=active, steps=case.steps)
    return Point(
        case=case,
        us_per_step=us,
        ratio=ratio,
        best_peer=min(rivals, key=lambda name: us[name].median, default=None),
        max_difference=differences,
        gflops=flops_per_step(case, active) / own_us / 1e3,
        floor_us=floor,
        fraction=None if floor is None else floor / own_us,
        rounds=len(ours),
        settle_ms=samples.settle_s * 1e3,
        others=samples.others,
        notes=notes,
    )


def machine_info() -> dict:
    """Everything about this machine and these libraries that a reader needs to judge the numbers."""
    info = {
        "cpu": cpu_name(),
        "cpus": len(allowed_cpus()),
        "isa": fastrnn.isa(),
        "caches_bytes": {name: size for name, (size, _) in cache_sizes().items()},
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "versions": {**registry.versions(), "torch": torch.__version__, "fastrnn": fastrnn.__version__},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "MKL_", "FASTRNN_"))},
    }
    return info


def _commit() -> str | None:
    """The commit of the checkout this file lies in, with "+" when it has changes; None for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if not git("ls-files", Path(__file__).name):
            return None
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "-s", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
