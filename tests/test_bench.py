"""The benchmark's own arithmetic, and small runs of its command line (no speed is asserted anywhere)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmark compares with torch")
pytest.importorskip("rich", reason="the benchmark prints with rich")

from fastrnn import bench
from fastrnn.bench import cases, ceilings, peers, report, runner, timing
from fastrnn.bench.timing import Samples, Stat

TINY = ["--quick", "--hidden", "16", "--steps", "5", "--budget", "0.001"]
CEILING = ceilings.Ceiling(
    2,
    100.0,
    (
        ceilings.Level("L1", 1_000, 400.0),
        ceilings.Level("L2", 10_000, 200.0),
        ceilings.Level("memory", float("inf"), 10.0),
    ),
)


def test_ratio_is_paired_within_rounds():
    # The machine slows down threefold after the second round; the ratio of each round is still exactly two.
    ours, peer = [1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 6.0, 6.0]
    assert timing.paired_ratio(peer, ours) == Stat(2.0, 2.0, 2.0)


def test_summary_is_median_and_quartiles():
    assert timing.summarize([5.0, 1.0, 4.0, 2.0, 3.0]) == Stat(3.0, 2.0, 4.0)
    assert timing.summarize([7.0]) == Stat(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="peer has 1 rounds, expected 2"):
        timing.paired_ratio([1.0], [1.0, 2.0])


def test_rounds_rotate_and_activate_before_every_turn():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    activate = {name: lambda name=name: order.append(name.upper()) for name in "abc"}
    samples = timing.interleave(runs, activate, budget_s=1e-6, slice_s=1e-9, min_rounds=3, max_rounds=3)
    assert {name: len(values) for name, values in samples.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    turns = [name for name in order if name.isupper()][-9:]
    assert turns == list("ABCBCACAB")


def test_a_disturbed_measurement_is_repeated_and_the_quietest_counts(monkeypatch):
    shares = iter([0.4, 0.2, 0.3, 0.01])
    monkeypatch.setattr(timing, "_interleave_once", lambda *_: timing.Samples({"a": [1.0]}, 0.0, next(shares)))
    assert timing.interleave({"a": int}).others == 0.2
    assert timing.interleave({"a": int}).others == 0.01
    assert next(shares, None) is None


def test_pinning_moves_every_thread_and_is_undone():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system cannot pin threads")
    before = os.sched_getaffinity(0)
    with timing.pinned(1) as cpus:
        assert os.sched_getaffinity(0) == set(cpus) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_weights_stream_from_the_fastest_levels_that_hold_them():
    assert ceilings.stream_seconds(2_000, CEILING) == pytest.approx(2_000 / 400e9)
    both = 2_000 / 400e9 + 20_000 / 200e9 + 8_000 / 10e9
    assert ceilings.stream_seconds(30_000, CEILING) == pytest.approx(both)


def test_floor_follows_the_documented_formula():
    h, b = 16, 4
    column, weights = 2 * 4 * h * b / 100e9, 4 * 4 * h * h
    stream = ceilings.stream_seconds(weights, CEILING)
    recurrent = max(column * h, stream)
    infer = ceilings.floor_us_per_step("lstm", "infer", h, b, CEILING)
    assert infer == pytest.approx(1e6 * (column * h + recurrent))
    train = ceilings.floor_us_per_step("lstm", "train", h, b, CEILING)
    assert train == pytest.approx(infer + 1e6 * (recurrent + column * 3 * h))
    step = ceilings.floor_us_per_step("lstm", "step", h, 1, CEILING, inputs=8)
    assert step == pytest.approx(1e6 * max(column / b * 24, ceilings.stream_seconds(weights * 1.5, CEILING)))
    slow = replace(CEILING, call_us={"train": 50.0, "step": 2.0})
    assert ceilings.floor_us_per_step("lstm", "train", h, b, slow, steps=100) == pytest.approx(train + 0.5)
    assert ceilings.floor_us_per_step("lstm", "step", h, 1, slow, inputs=8) == pytest.approx(step + 2.0)
    assert ceilings.floor_us_per_step("lstm", "infer", h, b, slow) == infer
    slow = replace(CEILING, gate_ns={"sigmoid": 1.0, "tanh": 2.0}, barrier_us=0.5)
    for mode, floor in (("infer", infer), ("train", train)):
        assert ceilings.floor_us_per_step("lstm", mode, h, b, slow) == pytest.approx(floor + 1e-3 * 7 * b * h / 2)
    alone = [ceilings.floor_us_per_step("gru", "train", h, 1, c) for c in (CEILING, slow)]
    assert alone[1] == pytest.approx(alone[0] + 1e-3 * 4 * h / 2 + 2 * 0.5)


def test_an_empty_training_call_costs_more_than_an_empty_inference_call():
    us = ceilings.empty_call_us()
    assert 0 < us["step"] < us["infer"] < us["train"]


def test_floor_is_bandwidth_at_batch_one_and_arithmetic_at_large_batch():
    small, large = (ceilings.floor_us_per_step("gru", "step", 64, b, CEILING) for b in (1, 256))
    assert small == pytest.approx(1e6 * ceilings.stream_seconds(4 * 3 * 64 * 128, CEILING))
    assert large == pytest.approx(1e6 * cases.flops_per_step(cases.Case("gru", "step", 64, 256)) / 100e9)


def test_flops_count_both_products_and_three_passes_in_training():
    assert cases.flops_per_step(cases.Case("lstm", "infer", 8, 2)) == 2 * 4 * 8 * 16 * 2
    assert cases.flops_per_step(cases.Case("rnn", "train", 8, 2), active=0.5) == 3 * 2 * 8 * 16


def test_measured_ceilings_fall_with_the_distance_of_the_memory():
    found = ceilings.measure(1)
    if found is None:
        pytest.skip("the system does not tell its cache sizes")
    assert found.fma_gflops > 0.1
    assert 0 < found.gate_ns["sigmoid"] < 100 and 0 < found.gate_ns["tanh"] < 100 and found.barrier_us == 0
    assert found.levels[-1].name == "memory" and found.levels[0].gbytes_per_s > found.levels[-1].gbytes_per_s > 0.1


def test_point_names_the_best_peer():
    seconds = {"fastrnn": [1e-4, 1e-4], "torch": [4e-4, 4e-4], "openvino": [2e-4, 3e-4], "own dense": [1e-5, 1e-5]}
    case = cases.Case("lstm", "infer", 16, 1, steps=10)
    point = runner._point(case, 1.0, Samples(seconds, 0.001, 0.5), CEILING, {}, [])
    assert (point.best_peer, point.ratio["openvino"].median, point.ratio["torch"].median) == ("openvino", 2.5, 4.0)
    assert point.us_per_step["fastrnn"].median == pytest.approx(10.0)
    assert point.fraction == pytest.approx(point.floor_us / 10.0)
    assert "1 of 3 points were disturbed" in report.disturbed([point.others, None, 0.01])
    assert report.disturbed([None, 0.01]) is None
    assert point.gflops == pytest.approx(2 * 4 * 16 * 32 / 10e-6 / 1e9)


def test_difference_notices_values_shapes_and_nan():
    want = {"h": np.array([2.0, 4.0])}
    assert peers.worst_difference({"h": np.array([2.0, 5.0])}, want) == 0.25
    assert peers.worst_difference({"h": np.array([np.nan, 4.0])}, want) == float("inf")
    with pytest.raises(ValueError, match=r"h has shape \(1,\), expected \(2,\)"):
        peers.worst_difference({"h": np.array([2.0])}, want)


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("cell", list(cases.GATES))
def test_every_peer_computes_the_same_layer(cell, mode, name):
    if not peers.versions()[name]:
        pytest.skip(f"{name} is not installed")
    for variant in ("dense", "ragged"):
        case = cases.Case(cell, mode, 16, 3, 7, variant=variant)
        if peers.supports(name, case) and (mode, variant) != ("step", "ragged"):
            data = cases.make_data(case)
            contestant = peers.build(name, case, data)
            result = contestant.result(contestant.run())
            exact = peers.reference(case, data)
            assert result.keys() >= exact.keys()
            assert peers.worst_difference(result, exact) < 1e-5


@pytest.mark.parametrize("variant", ["dense", "ragged", "reset"])
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("cell", list(cases.GATES))
def test_fastrnn_is_checked_in_every_variant(cell, mode, variant):
    case = cases.Case(cell, mode, 16, 3, 9, variant=variant, density=0.3 if variant == "reset" else 0.0)
    point = runner.measure(case, ["torch"], budget_s=0.001)
    assert point.max_difference["fastrnn"] < 1e-5
    assert ("own dense" in point.ratio) == (variant != "dense")
    assert ("torch" in point.ratio) == (variant != "reset")


def test_command_line_writes_table_json_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "a" / "out.json", tmp_path / "out.png"
    argv = [*TINY, "--cells", "lstm,rnn", "--batch", "2", "--mode", "infer,step", "--peers", "torch", "--ragged"]
    assert bench.main([*argv, "--json", str(out), "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "infer ragged" in text and "geometric mean" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    data = json.loads(out.read_text())
    assert data["schema"] == report.SCHEMA and len(data["points"]) == 6
    assert {"cpu", "isa", "cpus", "caches_bytes", "kernel", "versions", "commit", "date"} <= data["machine"].keys()
    assert data["machine"]["versions"]["torch"]
    point = data["points"][0]
    assert point["case"] | {"cell": "lstm", "hidden": 16, "batch": 2, "steps": 5, "threads": 1} == point["case"]
    assert point["best_peer"] == "torch" and point["ratio_best"] == point["ratio"]["torch"]
    for stat in (*point["us_per_step"].values(), *point["ratio"].values()):
        assert 0 < stat["q1"] <= stat["median"] <= stat["q3"]


def test_without_any_peer_the_own_times_remain(capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(peers, "versions", lambda: dict.fromkeys(peers.PEERS))
    argv = [*TINY, "--cells", "gru", "--batch", "1", "--plot", str(tmp_path / "empty.png")]
    assert bench.main(argv) == 0
    text = capsys.readouterr().out
    assert "gru" in text and "geometric mean" not in text


def test_wrong_result_is_an_error_and_not_a_time(capsys, monkeypatch):
    exact = peers.reference
    monkeypatch.setattr(peers, "reference", lambda *a: {k: v + 1 for k, v in exact(*a).items()})
    assert bench.main([*TINY, "--cells", "gru", "--batch", "1", "--peers", ""]) == 1
    assert "fastrnn: gru infer H=16 B=1 T=5 threads=1: differs from float64 by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cells", "lstm,mamba"], "got mamba, expected some of lstm,gru,rnn"),
        (["--hidden", "64,0"], "got 64,0, expected positive integers"),
        (["--batch", "1,x"], "got 1,x, expected positive integers"),
        (["--steps", "0"], "--steps: got 0, expected at least 1"),
        (["--threads", "4096"], "--threads: got 4096, expected at most"),
    ],
)
def test_bad_arguments_say_what_was_expected(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(argv)
    assert message in capsys.readouterr().err


def test_a_peer_asked_for_by_name_must_be_there(capsys, monkeypatch):
    monkeypatch.setattr(peers, "versions", lambda: dict.fromkeys(peers.PEERS))
    with pytest.raises(SystemExit, match="2"):
        bench.main([*TINY, "--peers", "openvino"])
    assert "openvino is not usable here" in capsys.readouterr().err


def test_targets_script_measures_a_row_and_judges_it(tmp_path, capsys):
    path = Path(__file__).resolve().parents[1] / "bench" / "targets.py"
    if not path.exists():
        pytest.skip("bench/targets.py is part of the source tree only")
    spec = importlib.util.spec_from_file_location("fastrnn_targets", path)
    targets = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = targets
    spec.loader.exec_module(targets)
    assert targets.main(["--only", "infer-torch", "--steps", "5", "--budget", "0.001", "--out", str(tmp_path)]) == 0
    assert "| infer-torch |" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "targets.json").read_text())["settings"]["targets"]
    assert result["met"] == (result["value"] >= result["target"]) and result["target"] == 7.0
    assert targets.Result("r", "", "", 1.15, 1.2, at_least=False).met is False


def test_gpu_script_wants_a_gpu_and_lists_what_did_not_fit(monkeypatch, capsys):
    folder = Path(__file__).resolve().parents[1] / "bench"
    if not (folder / "gpu.py").exists():
        pytest.skip("bench/gpu.py is part of the source tree only")
    monkeypatch.syspath_prepend(str(folder))
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--only", "attention"])
    assert "no CUDA device found" in capsys.readouterr().err
    row = {"score": "additive", "shape": "B", "sizes": "32x200x400x512x512", "dtype": "float32", "mode": "forward"}
    row |= {"us": {"fastrnn": 4.0, "fastrnn graph": 2.0}, "peak_mb": {"fastrnn": 30.4}}
    both = row | {"us": row["us"] | {"eager": 6.0, "eager graph": 5.0}, "peak_mb": {"fastrnn": 30.4, "eager": 60.0}}
    lines = gpu.gpu_attention.table([row, both], "the machine").splitlines()
    assert lines[-2].endswith("| forward | 4.0 |  |  | 2.0 |  |  | 30 | does not fit |")
    assert lines[-1].endswith("| forward | 4.0 | 6.0 | 1.50x | 2.0 | 5.0 | 2.50x | 30 | 60 |")
    row = {"work": "greedy", "us": {"fastrnn": 400.0, "eager": 6000.0}}
    assert gpu.gpu_decoder.table([row], "the machine").endswith("| greedy | 400 | 6000 | 15.00x |  |  |  |\n")
