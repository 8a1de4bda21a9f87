"""The demo: where its text comes from, that both sides train on the same terms, and that it reports what was measured."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys

import pytest

from fastrnn import demo
from fastrnn.demo import text

torch = pytest.importorskip("torch")
from fastrnn import nn  # noqa: E402
from fastrnn.demo import report, sampling, training  # noqa: E402

SMALL = ("--hidden", "16", "--batch", "3", "--seq", "12", "--steps", "20", "--threads", "1")
LIBRARIES = {"torch.nn": torch.nn, "fastrnn.nn": nn}


def needs_extras() -> None:
    for name in ("matplotlib", "rich", "tqdm"):
        pytest.importorskip(name)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=os.environ, capture_output=True, text=True, timeout=300)


@pytest.fixture(autouse=True)
def one_thread():
    """The models are too small for two, and on a busy machine two OpenMP threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data() -> training.Text:
    return training.Text.of("The quick brown fox jumps over the lazy dog. " * 200)


# ---- text


def test_language_reference_is_the_source():
    pytest.importorskip("pydoc_data.topics")
    corpus = text.load()
    assert "Python language reference" in corpus.source and "PSF" in corpus.licence
    assert len(corpus.text) > text.ENOUGH
    assert set(corpus.text) <= set(map(chr, range(32, 127))) | {"\n"}
    paragraphs = corpus.text.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))


def test_docstrings_stand_in_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # as in a distribution without it
    corpus = text.load()
    assert "docstrings" in corpus.source and "no pydoc_data.topics" in corpus.source
    assert len(corpus.text) > text.ENOUGH


def test_neither_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(text, "language_reference", lambda: None)
    monkeypatch.setattr(text, "docstrings", lambda: text.Corpus("a", "b", "too short"))
    with pytest.raises(RuntimeError, match="neither pydoc_data.topics nor"):
        text.load()


def test_clean_keeps_each_paragraph_once():
    assert text.clean(["one\n\ntwo", "\ntwo\n\n“three”\tß"]) == 'one\n\ntwo\n\n"three"    ?'


def test_held_out_text_is_the_last_tenth(data):
    assert len(data.held_out) == 900 and len(data.train) == 8100
    fair = training.Text("ab", torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    assert fair.letters_alone() == pytest.approx(1)


# ---- training


def test_batches_continue_and_predict_the_next_character():
    ids = torch.arange(101)
    got = list(itertools.islice(training.batches(ids, 4, 10), 5))
    for k, (x, y, again) in enumerate(got):
        assert x.shape == y.shape == (10, 4)
        assert torch.equal(y, x + 1)
        assert again == (k % 2 == 0)  # each stream has 25 characters: two batches
    assert torch.equal(got[1][0][0], got[0][0][-1] + 1)
    assert torch.equal(got[2][0], got[0][0])


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_both_sides_train_alike(cell, data):
    theirs, ours = training.sides(LIBRARIES, cell, len(data.vocabulary), 32, 1)
    start = theirs.model.state_dict()
    assert all(torch.equal(start[name], w) for name, w in ours.model.state_dict().items())
    assert type(ours.model.recurrent).__module__.startswith("fastrnn")
    assert type(theirs.model.recurrent).__module__.startswith("torch")
    turns = []
    training.race([theirs, ours], data, batch=5, length=16, steps=60, progress=turns.append)
    assert turns == [training.TURN] * 7 + [4]
    assert len(theirs.loss) == len(ours.loss) == 60
    assert ours.loss == pytest.approx(theirs.loss, abs=2e-3)  # rounding, amplified by 60 steps
    assert ours.loss[:8] == pytest.approx(theirs.loss[:8], abs=1e-5)
    assert ours.loss[-1] < 0.85 * ours.loss[0]
    for side in (theirs, ours):
        for step, forward, backward in zip(side.step_s, side.forward_s, side.backward_s):
            assert 0 < forward + backward < step


def test_step_in_pieces_has_the_gradients_of_one_backward(data, monkeypatch):
    monkeypatch.setattr(training, "CLIP", math.inf)
    (side,) = training.sides({"fastrnn.nn": nn}, "LSTM", len(data.vocabulary), 8, 1)
    x, target, _ = next(training.batches(data.train, 3, 7))
    model = side.model
    logits = model.head(model.recurrent(model.embedding(x))[0])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    expected = torch.autograd.grad(loss, list(model.parameters()))
    training.train_step(side, x, target, rate=0.0)
    assert side.loss == [pytest.approx(loss.item() / math.log(2))]
    for p, want in zip(model.parameters(), expected):
        torch.testing.assert_close(p.grad, want)


def test_race_stops_when_the_time_is_up(data):
    contestants = training.sides(LIBRARIES, "RNN", len(data.vocabulary), 4, 1)
    training.race(contestants, data, batch=2, length=4, steps=10**9, seconds=0.05)
    assert 0 < len(contestants[0].loss) < 10**5
    assert len(contestants[0].loss) == len(contestants[1].loss)


def test_interrupt_keeps_what_both_have_done(data, monkeypatch, capsys):
    needs_extras()
    contestants = training.sides(LIBRARIES, "RNN", len(data.vocabulary), 4, 1)
    plain = training.train_step

    def interrupted(side, *arguments):
        if len(contestants[0].loss) + len(contestants[1].loss) == 21:
            raise KeyboardInterrupt
        plain(side, *arguments)

    monkeypatch.setattr(training, "train_step", interrupted)
    options = argparse.Namespace(batch=2, seq=4, steps=100, seconds=60)
    done, others = demo._train(options, data, contestants)
    assert others is None or 0 <= others <= 1
    assert done == 8  # 16 in the first turns, then 5 of one side alone
    assert [len(side.step_s) for side in contestants] == [8, 8]
    assert "interrupted" in capsys.readouterr().err


def test_disturbance_is_what_others_use(monkeypatch):
    clocks = iter([(100.0, 1000.0), (150.0, 1100.0)])  # busy and all CPU seconds of the machine
    monkeypatch.setattr(training, "_machine_cpu", lambda: next(clocks))
    monkeypatch.setattr(training.time, "process_time", iter([1.0, 31.0]).__next__)
    assert training.Disturbance().share() == pytest.approx(0.2)  # 50 busy, of them 30 our own, of 100


def test_bits_per_character_of_a_guess(data):
    (side,) = training.sides({"fastrnn.nn": nn}, "GRU", len(data.vocabulary), 8, 1)
    with torch.no_grad():
        for p in side.model.head.parameters():
            p.zero_()
    assert training.bits_per_character(side.model, data.held_out) == pytest.approx(math.log2(len(data.vocabulary)))


# ---- sampling


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_stepper_writes_what_the_whole_model_would(cell, data):
    theirs, ours = training.sides(LIBRARIES, cell, len(data.vocabulary), 16, 2)
    training.race([theirs, ours], data, batch=4, length=16, steps=16)
    sample = sampling.generate(ours.model, ours.model.recurrent.stepper(1), data.vocabulary, 40, seed=3)
    again = sampling.generate(ours.model, ours.model.recurrent.stepper(1), data.vocabulary, 40, seed=3)
    calls = sampling.generate(ours.model, sampling.one_step_calls(ours.model), data.vocabulary, 40, seed=3)
    assert len(sample.ids) == 40 and sample.seconds > 0
    assert torch.equal(sample.ids, again.ids) and torch.equal(sample.ids, calls.ids)
    assert torch.equal(sampling.whole_sequence(ours.model, sample, data.vocabulary), sample.y)


# ---- report


def results() -> tuple[report.Result, report.Result]:
    made = []
    for name, scale in (("torch.nn", 3.0), ("fastrnn.nn", 1.0)):
        side = training.Side(name, None, None)
        side.loss = [5 - k / 50 + 1e-3 * scale * (k == 70) for k in range(100)]
        side.forward_s = [1e-3 * scale] * 100
        side.backward_s = [2e-3 * scale] * 100
        side.step_s = [3e-3 * scale + 3e-3] * 100
        made.append(report.Result(side, 2.5, 1e-5 * scale))
    return made[0], made[1]


def test_ratios_are_those_of_the_times():
    expected = {"step": 2.0, "recurrent": 3.0, "total": 2.0, "sample": 3.0}
    assert report.ratios(*results()) == pytest.approx(expected)


def test_loss_difference_is_that_of_early_steps_and_of_all():
    theirs, ours = results()
    assert report.loss_difference(theirs.side, ours.side) == pytest.approx((2e-3, 2e-3))
    ours.side.loss.append(1.0)
    theirs.side.loss.append(1.5)
    assert report.loss_difference(theirs.side, ours.side) == pytest.approx((2e-3, 0.5))


def test_smoothed_is_a_trailing_mean():
    assert report.smoothed([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert report.smoothed([0.0] * 99 + [1.0])[-2:] == [0.0, 0.5]  # windows of two


# ---- the command


def test_control_differs_by_one_rounding(data):
    (side,) = training.sides({"torch.nn": torch.nn}, "GRU", len(data.vocabulary), 8, 1)
    other = training.one_rounding_away(side)
    for a, b in zip(side.model.parameters(), other.model.parameters()):
        assert (b > a).all() and torch.allclose(a, b, rtol=2e-7, atol=0)
    assert {id(p) for group in other.optimiser.param_groups for p in group["params"]} == set(
        map(id, other.model.parameters())
    )


@pytest.mark.parametrize(
    "more", [("--cell", "gru", "--layers", "2"), ("--cell", "lstm", "--control"), ("--cell", "rnn", "--seed", "2")]
)
def test_demo_runs(more, tmp_path):
    needs_extras()
    picture = tmp_path / "new" / "demo.png"
    result = run("-m", "fastrnn", "demo", *SMALL, *more, "--output", str(picture))
    assert result.returncode == 0, result.stderr
    for word in ("PSF License", more[1].upper(), "torch.nn", "fastrnn.nn", "held-out", "Stepper", str(picture.name)):
        assert word in result.stdout, word
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "stopped after" not in result.stdout
    assert ("torch.nn from weights one rounding away" in result.stdout) == ("--control" in more)


def test_demo_says_when_it_stops_early(tmp_path):
    needs_extras()
    arguments = ("--steps", "1000000", "--seconds", "0.2", "--output", str(tmp_path / "demo.png"))
    result = run("-m", "fastrnn", "demo", *SMALL, *arguments)
    assert result.returncode == 0, result.stderr
    assert "of 1000000 steps" in result.stdout


def test_demo_fails_when_the_sides_disagree(tmp_path):
    needs_extras()
    code = f"""
import sys, fastrnn.nn
from fastrnn import demo
class GRU(fastrnn.nn.GRU):
    def forward(self, *arguments):
        y, h = super().forward(*arguments)
        return 1.1 * y, h
fastrnn.nn.GRU = GRU
sys.exit(demo.main({[*SMALL, "--output", str(tmp_path / "demo.png")]!r}))
"""
    result = run("-c", code)
    assert result.returncode == 1
    assert "losses of the first step differ" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "argument --steps: got 0, expected a positive number"),
        (("--hidden", "many"), "argument --hidden: invalid int value: 'many'"),
        (("--cell", "mamba"), "argument --cell: invalid choice: 'mamba'"),
        (("--seq", "1000000"), "argument --seq: got 1000000, expected at most"),
    ],
)
def test_wrong_options_are_named(arguments, message, capsys):
    needs_extras()
    with pytest.raises(SystemExit) as error:
        demo.main(list(arguments))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as error:
        demo.main([])
    assert error.value.code == 2
    assert "demo: matplotlib is not installed, expected: pip install fastrnn[torch,demo]" in capsys.readouterr().err
