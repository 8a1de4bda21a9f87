"""Generation and the decoder's module: token by token against a loop of the oracle."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import fastrnn  # noqa: E402
from fastrnn import _noise, nn, reference  # noqa: E402
from fastrnn.decoder import prepare  # noqa: E402

OPTIONS = [
    {"cell": "lstm"},
    {"cell": "gru", "attention": "general", "input_feeding": False},
    {"cell": "gru", "order": "bahdanau", "bias": False},
    {"cell": "lstm", "attention": "dot", "order": "bahdanau", "memory_size": 19},
]


def make(options, dtype=torch.float64, V=37, B=4, Tk=6, seed=0, device="cpu"):
    """A decoder with weights large enough for its sequences to differ, a memory and lengths."""
    torch.manual_seed(seed)
    options = {"memory_size": 11, "vocabulary_size": V, "dtype": dtype} | options
    decoder = nn.AttentionDecoder(7, 19, **options)
    with torch.no_grad():
        for p in decoder.parameters():
            p *= 2.5
    memory = torch.randn(B, Tk, options["memory_size"], dtype=dtype)
    lengths = torch.randint(1, Tk + 1, (B,))
    lengths[0] = 0
    state = [torch.randn(B, 19, dtype=dtype) for _ in range(2)]
    decoder, memory, lengths, state = (
        decoder.to(device),
        memory.to(device),
        lengths.to(device),
        [s.to(device) for s in state],
    )
    return decoder, memory, lengths, tuple(state) if decoder.cell == "lstm" else state[0]


class Loop:
    """The decoder one step at a time, by the oracle."""

    def __init__(self, decoder, memory, lengths, state):
        self.decoder, self.memory, self.lengths, self.state = decoder, memory, lengths, state
        self.feed = memory.new_zeros(memory.shape[0], decoder.hidden_size) if decoder.input_feeding else None

    def select(self, rows):
        """Rows to go on with."""
        self.state = tuple(s[rows] for s in self.state) if isinstance(self.state, tuple) else self.state[rows]
        self.feed = None if self.feed is None or self.decoder.order == "bahdanau" else self.feed[rows]

    @torch.no_grad()
    def step(self, tokens, rows=slice(None)):
        """Log probabilities [n, V] and weights [n, Tk]; rows: the memories that are attended to."""
        d, lengths = self.decoder, None if self.lengths is None else self.lengths[rows]
        memory = self.memory[rows]
        x = d.embedding(tokens)[:, None]
        feed = self.feed if d.order == "luong" and d.input_feeding else None
        arguments = prepare(x, memory, d.weights(), self.state, d.cell, d.order, d.precompute(memory), lengths, feed)
        y, shares, state = reference.attention_decoder(*arguments)
        self.state, self.feed = state if d.cell == "lstm" else state[0], y[:, 0]
        return d.vocabulary_layer(y[:, 0]).log_softmax(-1), shares[:, 0]


def greedy(loop, start, end, max_length, choose=None):
    """tokens, lengths, weights and log probabilities, by row as lists."""
    B = loop.memory.shape[0]
    tokens, found = torch.full((B,), start, device=loop.memory.device), [([], [], []) for _ in range(B)]
    for t in range(max_length):
        log_probs, shares = loop.step(tokens)
        tokens = log_probs.argmax(-1) if choose is None else choose(t, log_probs)
        for b, (row, attended, probs) in enumerate(found):
            if not row or row[-1] != end:
                row.append(int(tokens[b]))
                attended.append(shares[b])
                probs.append(float(log_probs[b, tokens[b]]))
    return found


def assert_same(got, found, end):
    assert got.lengths.tolist() == [len(row) for row, _, _ in found]
    assert got.tokens.shape[1] == max(len(row) for row, _, _ in found)
    tolerance = 1e-10 if got.weights.dtype is torch.float64 else 2e-4
    for b, (row, attended, probs) in enumerate(found):
        n = len(row)
        assert got.tokens[b].tolist() == row + [0 if end is None else end] * (got.tokens.shape[1] - n)
        torch.testing.assert_close(got.weights[b, :n], torch.stack(attended), atol=tolerance, rtol=0)
        want = torch.tensor(probs, dtype=torch.float64).to(got.log_probs)
        torch.testing.assert_close(got.log_probs[b, :n], want, atol=tolerance * 10, rtol=tolerance)
        assert (got.weights[b, n:] == 0).all() and (got.log_probs[b, n:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_greedy_is_the_loop_token_by_token(engine, options, dtype):
    decoder, memory, lengths, state = make(options, dtype, device=engine)
    # An end token that some rows produce and others do not.
    free = greedy(Loop(decoder, memory, lengths, state), 1, None, 9)
    end = free[1][0][3]
    for stop in (None, end):
        got = decoder.generate(memory, state, start=1, end=stop, max_length=9, lengths=lengths)
        assert_same(got, greedy(Loop(decoder, memory, lengths, state), 1, stop, 9), stop)
    assert (got.weights[0] == 0).all()


def test_weights_in_any_layout(engine):
    decoder, memory, _, state = make({"bias": False}, torch.float32, device=engine)
    options = {"start": 1, "end": None, "max_length": 4}
    want = decoder.generate(memory, state, **options)
    for p in decoder.parameters():  # the matrices by columns, then with rows that do not touch
        p.data = p.data.t().contiguous().t() if p.ndim == 2 else p.data
    assert torch.equal(decoder.generate(memory, state, **options).log_probs, want.log_probs)
    for p in decoder.parameters():
        p.data = torch.nn.functional.pad(p.data, (0, 3), value=math.nan)[:, :-3] if p.ndim == 2 else p.data
    assert torch.equal(decoder.generate(memory, state, **options).log_probs, want.log_probs)


@pytest.mark.parametrize(("V", "top_k", "temperature"), [(37, None, 1.0), (37, 5, 0.7), (130, 1, 2.0), (3, 9, 1.5)])
def test_samples_follow_the_counter(engine, V, top_k, temperature):
    decoder, memory, lengths, state = make({}, V=V, device=engine)
    uniform = (_noise.bits(77, 0, 8, 4, 1)[..., 0].double() / 2**32).to(engine)

    def choose(t, log_probs):
        p = log_probs / temperature
        if top_k and top_k < V:
            p = p.masked_fill(p < p.topk(top_k, -1).values[:, -1:], -math.inf)
        p = p.softmax(-1).cumsum(-1)
        return (p <= (uniform[t] * p[:, -1])[:, None]).sum(-1)

    options = {"start": 2, "end": 0, "max_length": 8, "lengths": lengths, "temperature": temperature}
    got = decoder.generate(memory, state, **options, top_k=top_k, seed=77)
    assert_same(got, greedy(Loop(decoder, memory, lengths, state), 2, 0, 8, choose), 0)
    if top_k == 1:
        likely = decoder.generate(memory, state, **(options | {"temperature": 0}))
        assert torch.equal(got.tokens, likely.tokens)


def test_samples_have_the_right_frequencies():
    decoder, memory, _, _ = make({"cell": "gru"}, V=5, B=1)
    many = memory.expand(4000, -1, -1)
    got = decoder.generate(many, start=1, end=None, max_length=1, temperature=1.0, seed=3)
    loop = Loop(decoder, memory, None, memory.new_zeros(1, 19))
    want = loop.step(torch.tensor([1]))[0][0].exp()
    share = torch.bincount(got.tokens[:, 0], minlength=5) / 4000
    assert (share - want).abs().max() < 0.03  # four standard deviations
    torch.manual_seed(5)
    one = decoder.generate(many, start=1, end=None, max_length=1, temperature=1.0)
    torch.manual_seed(5)
    assert torch.equal(one.tokens, decoder.generate(many, start=1, end=None, max_length=1, temperature=1.0).tokens)


def beams_of(decoder, memory, lengths, state, start, end, max_length, K, alpha, beta):
    """Every finished sequence of each batch, best first: (score, log probability, tokens, weights)."""
    result = []
    for b in range(memory.shape[0]):
        own = tuple(s[[b]] for s in state) if isinstance(state, tuple) else state[[b]]
        loop = Loop(decoder, memory[[b]], lengths[[b]], own)
        alive, ended = [(0.0, [start], [])], []
        for _ in range(max_length):
            rows = torch.zeros(len(alive), dtype=torch.long, device=memory.device)
            log_probs, shares = loop.step(
                torch.tensor([tokens[-1] for _, tokens, _ in alive], device=memory.device), rows
            )
            every = sorted(
                ((total + float(log_probs[j, v]), j, v) for j, (total, _, _) in enumerate(alive)
                 for v in range(log_probs.shape[1])), key=lambda c: (-c[0], c[1], c[2]),
            )[: 2 * K]  # fmt: skip
            new, parents = [], []
            for i, (score, j, v) in enumerate(every):
                grown = (score, alive[j][1] + [v], alive[j][2] + [shares[j]])
                if v == end:
                    if i < K and len(new) < K:
                        ended.append(grown)
                elif len(new) < K:
                    new.append(grown)
                    parents.append(j)
            alive = new
            if len(ended) >= K or not alive:
                break
            loop.select(torch.tensor(parents, device=memory.device))
        if len(ended) < K:
            ended += alive
        scored = []
        for log_prob, tokens, attended in ended:
            covered = torch.stack(attended).sum(0)[: int(lengths[b])].clamp(torch.finfo(memory.dtype).tiny, 1)
            score = log_prob / ((5 + len(tokens) - 1) / 6) ** alpha + beta * float(covered.log().sum())
            scored.append((score, log_prob, tokens[1:], attended))
        result.append(sorted(scored, key=lambda s: -s[0]))
    return result


@pytest.mark.parametrize(
    ("options", "K", "alpha", "beta"),
    [(OPTIONS[0], 5, 0.6, 0.2), (OPTIONS[1], 2, 1.0, 0.0), (OPTIONS[2], 3, 0.0, 0.5), (OPTIONS[3], 1, 0.0, 0.0)],
    ids=str,
)
def test_beam_search_is_the_loop(engine, options, K, alpha, beta):
    decoder, memory, lengths, state = make(options, V=23, device=engine)
    lengths[0] = 2
    found = decoder.beam_search(
        memory, state, start=1, end=3, max_length=7, lengths=lengths, beams=K, n_best=K, length_penalty=alpha,
        coverage_penalty=beta,
    )  # fmt: skip
    wanted = beams_of(decoder, memory, lengths, state, 1, 3, 7, K, alpha, beta)
    for b, sequences in enumerate(wanted):
        for i, (score, log_prob, tokens, attended) in enumerate(sequences[:K]):
            n = len(tokens)
            assert found.lengths[b, i] == n
            assert found.tokens[b, i].tolist() == tokens + [3] * (found.tokens.shape[2] - n)
            assert abs(float(found.scores[b, i]) - score) < 1e-9
            assert abs(float(found.log_probs[b, i]) - log_prob) < 1e-9
            torch.testing.assert_close(found.weights[b, i, :n], torch.stack(attended), atol=1e-10, rtol=0)
            assert (found.weights[b, i, n:] == 0).all()


def test_one_beam_is_greedy_and_small_vocabularies_work(engine):
    decoder, memory, lengths, state = make({}, V=23, device=engine)
    options = {"start": 1, "end": 3, "max_length": 7, "lengths": lengths}
    likely = decoder.generate(memory, state, **options)
    one = decoder.beam_search(memory, state, **options, beams=1)
    assert torch.equal(one.tokens[:, 0], likely.tokens) and torch.equal(one.lengths[:, 0], likely.lengths)
    cold = decoder.generate(memory, state, **options, temperature=1e-50, seed=1)
    assert torch.equal(cold.tokens, likely.tokens)
    decoder, memory, lengths, state = make({}, V=2, device=engine)
    found = decoder.beam_search(memory, state, start=0, end=1, max_length=3, lengths=lengths, beams=4, n_best=4)
    possible = {(1, 1, 1), (0, 1, 1), (0, 0, 1), (0, 0, 0)}
    assert all({tuple(s.tolist()) for s in found.tokens[b]} == possible for b in range(4))
    assert torch.allclose(found.log_probs.exp().sum(1), torch.ones(4, dtype=torch.float64, device=engine))


@pytest.mark.parametrize("V", [37, 1000])
def test_threads_give_the_same_bits(isa, V):
    decoder, memory, lengths, state = make({"attention_size": 40}, torch.float32, V=V, B=5)
    first = None
    for n in (1, 2, 3):
        fastrnn.set_num_threads(n)
        options = {"start": 1, "end": 3, "max_length": 6, "lengths": lengths}
        found = decoder.generate(memory, state, **options), decoder.beam_search(memory, state, **options, n_best=2)
        found += (decoder.generate(memory, state, **options, temperature=1.0, seed=1),)
        first = first or found
        assert all(torch.equal(a, b) for f, g in zip(found, first) for a, b in zip(f, g)), n


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_module_decodes_given_sequences(engine, options):
    decoder, memory, lengths, state = make(options, device=engine)
    tokens = torch.randint(0, 37, (4, 5), device=engine)
    output, weights, last = decoder(tokens, memory, state, lengths=lengths)
    arguments = prepare(
        decoder.embedding(tokens), memory, decoder.weights(), state, decoder.cell, decoder.order,
        decoder.precompute(memory), lengths, None,
    )  # fmt: skip
    want = reference.attention_decoder(*arguments)
    torch.testing.assert_close((output, weights), want[:2])
    torch.testing.assert_close(last if decoder.cell == "lstm" else (last,), want[2])
    loss = decoder.vocabulary_layer(output).logsumexp(-1).sum() + weights.square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert decoder.order in repr(decoder)


def test_module_has_torchs_cell_inside():
    decoder = nn.AttentionDecoder(5, 8, 6, input_feeding=False)
    cell = torch.nn.LSTMCell(5, 8)
    names = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    missing, unexpected = decoder.load_state_dict(cell.state_dict(), strict=False)
    assert unexpected == [] and not names & set(missing)
    assert set(missing) == {
        "v",
        "query_layer.weight",
        "memory_layer.weight",
        "memory_layer.bias",
        "output_layer.weight",
    }
    x, state = torch.randn(2, 3, 5), None
    for t in range(3):
        state = cell(x[:, t], state)
    torch.testing.assert_close(decoder(x, torch.randn(2, 4, 6))[2], state)


# torch warns about its own internals while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_module_compiles_and_narrow_types_generate():
    decoder, memory, lengths, _ = make({}, torch.float32)
    tokens = torch.randint(0, 37, (4, 5))
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, memory, lengths=lengths), decoder(tokens, memory, lengths=lengths))
    narrow = decoder.to(torch.bfloat16)
    got = narrow.generate(memory.bfloat16(), start=1, end=3, max_length=4, temperature=0.0)
    assert got.weights.dtype is torch.bfloat16 and got.tokens.shape[0] == 4


def test_no_rows_and_one_step(engine):
    decoder, memory, _, _ = make({}, device=engine)
    assert decoder.generate(memory[:0], start=1, end=2, max_length=3).tokens.shape == (0, 0)
    assert decoder.beam_search(memory[:0], start=1, end=2, max_length=3).tokens.shape[:2] == (0, 1)
    starts = torch.tensor([1, 2, 3, 4], device=engine)
    got = decoder.generate(memory, start=starts, end=None, max_length=1)
    want = torch.cat([decoder.generate(memory[[b]], start=b + 1, end=None, max_length=1).tokens for b in range(4)])
    assert torch.equal(got.tokens, want)


DECODER = [
    (lambda: nn.AttentionDecoder(0, 4, 4), "embedding_size is 0, expected an int of at least 1"),
    (lambda: nn.AttentionDecoder(4, 4, 4, cell="rnn"), "cell is 'rnn', expected one of 'lstm', 'gru'"),
    (lambda: nn.AttentionDecoder(4, 4, 4, attention="cosine"), "attention is 'cosine', expected one of"),
    (lambda: nn.AttentionDecoder(4, 4, 4, order="other"), "order is 'other'"),
    (lambda: nn.AttentionDecoder(4, 4, 5, attention="dot"), "memory_size is 5, expected hidden_size = 4"),
    (lambda: nn.AttentionDecoder(4, 4, 4, 6, attention="dot"), "attention_size is 6, expected None"),
    (lambda: nn.AttentionDecoder(4, 4, 4, order="bahdanau", input_feeding=True), "input_feeding is True, expected"),
]


@pytest.mark.parametrize(("make_one", "message"), DECODER, ids=[m[:30] for _, m in DECODER])
def test_bad_modules_are_named(make_one, message):
    with pytest.raises(ValueError, match=f"AttentionDecoder: {message}"):
        make_one()


GOOD = {"start": 1, "end": 2, "max_length": 3}
CALLS = [
    ("generate", {"start": 37}, r"generate: start is 37, expected a token in \[0, 37\)"),
    ("generate", {"start": torch.tensor([1, 2, 3, -1])}, "generate: start is -1"),
    ("generate", {"start": torch.tensor([1, 2])}, r"generate: start has shape \(2,\), expected \(B,\) = \(4,\)"),
    ("generate", {"start": torch.ones(4)}, "generate: start has dtype torch.float32, expected an integer dtype"),
    ("generate", {"end": -1}, "generate: end is -1, expected a token"),
    ("generate", {"max_length": 2**70}, "generate: max_length is .*, expected an int of at least 1"),
    ("generate", {"max_length": 0}, "generate: max_length is 0, expected an int of at least 1"),
    ("generate", {"temperature": -0.5}, "generate: temperature is -0.5, expected a number of at least 0"),
    ("generate", {"temperature": math.nan}, "generate: temperature is nan"),
    ("generate", {"top_k": 0}, "generate: top_k is 0, expected an int of at least 1"),
    ("generate", {"seed": 1.5}, "generate: seed is a float, expected an int or None"),
    ("generate", {"lengths": [1, 2, 3, 9]}, "lengths has 9, expected 0 <= lengths"),
    ("beam_search", {"beams": 0}, "beam_search: beams is 0, expected an int of at least 1"),
    ("beam_search", {"beams": 2, "n_best": 3}, "beam_search: n_best is 3, expected at most beams = 2"),
    ("beam_search", {"length_penalty": -1}, "beam_search: length_penalty is -1, expected a number of at least 0"),
    ("beam_search", {"coverage_penalty": "x"}, "beam_search: coverage_penalty is 'x'"),
    ("beam_search", {"end": None}, "beam_search: end is a NoneType, expected an int"),
]


@pytest.mark.parametrize(("name", "change", "message"), CALLS, ids=[m[:40] for *_, m in CALLS])
def test_bad_calls_are_named(name, change, message):
    decoder, memory, _, _ = make({})
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(decoder, name)(memory, **(GOOD | change))


def test_modules_name_bad_tensors():
    decoder, memory, _, state = make({})
    with pytest.raises(fastrnn.ShapeError, match=r"AttentionDecoder: memory has shape \(4, 6, 10\), expected"):
        decoder(torch.ones(4, 5, dtype=torch.long), memory[..., :10])
    with pytest.raises(fastrnn.ShapeError, match=r"AttentionDecoder: input has shape \(4, 5, 6\), expected"):
        decoder(torch.ones(4, 5, 6, dtype=torch.float64), memory)
    with pytest.raises(fastrnn.ShapeError, match=r"h0 has shape \(2, 19\), expected \(B, H\) = \(4, 19\)"):
        decoder.generate(memory, tuple(s[:2] for s in state), **GOOD)
    for bad, text in (
        (torch.ones(4, 5, dtype=torch.bool), "input has dtype torch.bool, expected an integer dtype"),
        (
            torch.ones(4, 5, dtype=torch.long, device="meta"),
            r"input is on meta, expected cpu \(the device of the param",
        ),
    ):
        with pytest.raises((fastrnn.DTypeError, fastrnn.DeviceError), match=f"AttentionDecoder: {text}"):
            decoder(bad, memory)
    for bad, text in (
        (memory.float(), "memory has dtype torch.float32, expected"),
        (memory.to("meta"), "memory is on"),
    ):
        for call in (
            decoder.precompute,
            lambda m: decoder.generate(m, **GOOD),
            lambda m: decoder(torch.ones(4, 1).long(), m),
        ):
            with pytest.raises((fastrnn.DTypeError, fastrnn.DeviceError), match=f"AttentionDecoder: {text}"):
                call(bad)
    with pytest.raises(ValueError, match="generate: the decoder has no vocabulary, expected vocabulary_size"):
        nn.AttentionDecoder(4, 4, 4).generate(torch.ones(1, 2, 4), **GOOD)
