"""bench/gpu_primitives.cu, by emulation, where its times mean nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def test_what_schedules_are_made_of_can_be_measured(cuda_host):
    program = Path(cuda_host.__file__).parent / "gpu_primitives"
    done = subprocess.run([program, "2"], check=True, capture_output=True, timeout=200)
    found = json.loads(done.stdout)
    clusters, grids = [("cluster", n) for n in (2, 4, 8, 16)], [("grid", n) for n in (2, 16, 64, 132)]
    assert {(e["schedule"], e["ctas"]) for e in found["exchange"]} == {*clusters, *grids}
    assert all(e["ns"] > 0 for e in found["exchange"] + found["cluster_sync"])
    assert len(found["active_clusters"]) == 12 and found["mma_bf16"]["ctas"] == 132
