"""MultiHeadAttention against torch.nn.MultiheadAttention."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import fastrnn  # noqa: E402
from fastrnn import _torch_attention, nn  # noqa: E402

DOUBLE = {"dtype": torch.float64}
HEADS = {
    "plain": {},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 5, "vdim": 3},
    "appended": {"add_bias_kv": True, "add_zero_attn": True},
    "batch_first": {"batch_first": True},
}


def pair(**options):
    """torch's module and ours; the same seed gives the same parameters."""
    modules = []
    for cls in (torch.nn.MultiheadAttention, nn.MultiHeadAttention):
        torch.manual_seed(3)
        modules.append(cls(8, 2, **options, **DOUBLE))
    theirs, ours = modules
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for a, b in zip(theirs.state_dict().values(), ours.state_dict().values()):
        assert torch.equal(a, b)
    with torch.no_grad():
        for p in theirs.parameters():  # biases start as zeros
            p.copy_(torch.randn_like(p))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def call_both(theirs, ours, *arguments, **options):
    found = []
    for module in (theirs, ours):
        leaves = [a.detach().clone().requires_grad_() for a in arguments]
        y, weights = module(*leaves, **options)
        loss = y.sin().sum() + (0 if weights is None else weights.cos().sum())
        found.append((y, weights, torch.autograd.grad(loss, [*leaves, *module.parameters()])))
    assert found[0][0].shape == found[1][0].shape
    return found


MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.rand(4, 6) < 0.4},
    "float": {"attn_mask": torch.randn(4, 6, dtype=torch.float64)},
    "per head": {"attn_mask": torch.rand(6, 4, 6) < 0.4},
    "padding": {"key_padding_mask": torch.rand(3, 6) < 0.4},
    "float padding": {"key_padding_mask": torch.randn(3, 6, dtype=torch.float64)},
    "both": {"key_padding_mask": torch.rand(3, 6) < 0.3, "attn_mask": torch.rand(4, 6) < 0.3},
}
for _masks in MASKS.values():
    for _mask in _masks.values():
        if _mask.dtype is torch.bool:
            _mask[..., 0] = False  # torch gives NaN where nothing is left


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", HEADS)
def test_multi_head_is_torchs(options, masks):
    theirs, ours = pair(**HEADS[options])
    query = torch.randn(4, 3, 8, **DOUBLE)
    key, value = torch.randn(6, 3, ours.kdim, **DOUBLE), torch.randn(6, 3, ours.vdim, **DOUBLE)
    if ours.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    for more in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        torch.testing.assert_close(*call_both(theirs, ours, query, key, value, **MASKS[masks], **more))


def test_multi_head_unbatched_and_causal():
    theirs, ours = pair()
    query, key = torch.randn(4, 8, **DOUBLE), torch.randn(6, 8, **DOUBLE)
    for more in ({}, {"key_padding_mask": torch.tensor([False] * 4 + [True] * 2)}, {"average_attn_weights": False}):
        torch.testing.assert_close(*call_both(theirs, ours, query, key, key, **more))
    later = torch.ones(4, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(query, key, key, is_causal=True), theirs(query, key, key, attn_mask=later))


def test_multi_head_without_a_key_gives_zeros():
    theirs, ours = pair(batch_first=True)
    query, memory = torch.randn(3, 4, 8, **DOUBLE), torch.randn(3, 6, 8, **DOUBLE)
    lengths = torch.tensor([6, 0, 3])
    ignored = torch.arange(6) >= lengths[:, None]
    assert theirs(query, memory, memory, key_padding_mask=ignored)[0][1].isnan().all()
    memory[1] = math.nan
    memory[2, 3:] = math.inf
    memory.requires_grad_()
    y, weights = ours(query, memory, lengths=lengths)
    assert torch.equal(y[1], ours.out_proj.bias.expand(4, 8)) and (weights[1] == 0).all()
    (y.sum() + weights.square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in (memory, *ours.parameters())) and (memory.grad[1] == 0).all()
    by_lengths = [p.grad.clone() for p in (memory, *ours.parameters())]
    for mask in (ignored, torch.zeros(3, 6, **DOUBLE).masked_fill(ignored, -math.inf)):
        memory.grad = None
        ours.zero_grad()
        again = ours(query, memory, key_padding_mask=mask)
        (again[0].sum() + again[1].square().sum()).backward()
        torch.testing.assert_close(again, (y, weights))
        torch.testing.assert_close([p.grad for p in (memory, *ours.parameters())], by_lengths)
    finite = memory.detach().nan_to_num(0, 0, 0)
    torch.testing.assert_close(ours(query, finite, key_padding_mask=ignored)[0], y)
    torch.testing.assert_close(theirs(query[::2], finite[::2], finite[::2], key_padding_mask=ignored[::2])[0], y[::2])
    step = ours(query[:, :1], lengths=lengths, keys=ours.precompute(finite))
    torch.testing.assert_close(step, (y[:, :1], weights[:, :1]))


def test_multi_head_dropout():
    ours = nn.MultiHeadAttention(8, 2, dropout=0.5, batch_first=True)
    x = torch.randn(2, 5, 8)
    plain = ours.eval()(x, x, average_attn_weights=False)[1]
    y, weights = ours.train()(x, x, average_attn_weights=False)
    assert ((weights == 0) | torch.isclose(weights, 2 * plain)).all() and (weights == 0).any()
    assert y.shape == x.shape


# ---- heads without weights, handed over to torch


@pytest.fixture
def handed(monkeypatch):
    """The calls of torch's scaled_dot_product_attention."""
    calls, real = [], _torch_attention.scaled_dot_product_attention

    def spy(*args, **options):
        calls.append(options)
        return real(*args, **options)

    monkeypatch.setattr(_torch_attention, "scaled_dot_product_attention", spy)
    return calls


def self_attention(S=40, L=35, **options):
    """A module with random biases, queries and a memory."""
    module = nn.MultiHeadAttention(16, 2, batch_first=True, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) / 2)
    return module, torch.randn(3, L, 16), torch.randn(3, S, 16)


def limits(name, L=35, S=40):
    """Options of a call that hide keys; in most of them query 1 of row 1 or of all rows has none left."""
    pairs, padding = torch.rand(L, S) < 0.4, torch.rand(3, S) < 0.4
    pairs[1], padding[1] = True, True
    floats = torch.randn(L, S).masked_fill(pairs, -math.inf)
    made = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": pairs},
        "float": {"attn_mask": floats},
        "per head": {"attn_mask": pairs.expand(6, L, S) & (torch.rand(6, L, S) < 0.6)},
        "padding": {"key_padding_mask": padding},
        "bool, float": {"key_padding_mask": padding, "attn_mask": floats},
        "padding, causal": {"key_padding_mask": padding, "is_causal": True},
    }
    return made[name]


KINDS = ["none", "causal", "bool", "float", "per head", "padding", "bool, float", "padding, causal"]


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["plain", "appended"])
@pytest.mark.parametrize("kind", KINDS)
def test_handed_over_heads_are_ours(kind, options, handed):
    for L in (35, 50):
        module, query, memory = self_attention(L=L, **options)
        for call in ({}, {"keys": module.precompute(memory)}):
            more = limits(kind, L) | {"key": None if call else memory} | call
            with torch.no_grad():
                y, none = module(query, need_weights=False, **more)
                want, _ = module(query, **more)
            assert none is None
            torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    assert len(handed) == 4
    assert handed[0]["is_causal"] == (kind == "causal" and not options)


@pytest.mark.parametrize("kind", ["bool", "float", "padding"])
@pytest.mark.parametrize("version", ["2.4", "now"])
def test_a_query_without_a_key_gives_zeros_from_torch_as_well(kind, version, handed, monkeypatch):
    """Up to 2.4 torch gave NaN for it."""
    module, query, memory = self_attention()
    if version == "2.4":
        real = _torch_attention.scaled_dot_product_attention
        nan = torch.tensor(math.nan)

        def old(q, k, v, attn_mask, is_causal):
            y = real(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
            return torch.where((y == 0).all(-1, keepdim=True), nan, y)

        monkeypatch.setattr(_torch_attention, "scaled_dot_product_attention", old)
    with torch.no_grad():
        y, _ = module(query, memory, need_weights=False, **limits(kind))
    dead = y[1] if kind == "padding" else y[:, 1]
    assert len(handed) == 1 and torch.equal(dead, module.out_proj.bias.expand_as(dead)) and y.isfinite().all()


@pytest.mark.parametrize("kind", ["bool", "float", "padding", "causal"])
def test_hidden_keys_may_hold_nan_there_as_well(kind, handed):
    module, query, memory = self_attention(S=60)
    options = limits(kind, S=60)
    for mask in options.values():
        if isinstance(mask, torch.Tensor):
            mask[..., 50:] = True if mask.dtype is torch.bool else -math.inf
    with torch.no_grad():
        keys = module.precompute(memory)
        want, _ = module(query, keys=keys, need_weights=False, **options)
        for t in keys:
            t[:, :, 50:] = math.nan
        y, _ = module(query, keys=keys, need_weights=False, **options)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    assert len(handed) == 2 and y.isfinite().all()


@pytest.mark.parametrize("S", [31, 32, 33, 64, 65, 513])
@pytest.mark.parametrize("where", ["query", "memory"])
def test_nan_is_not_hidden_there_either(where, S):
    module, query, memory = self_attention(S)
    (query if where == "query" else memory)[0, 1] = math.nan
    with torch.no_grad():
        for options in ({}, {"is_causal": True}, {"attn_mask": torch.zeros(35, S)}):
            y, _ = module(query, memory, need_weights=False, **options)
            assert y[0, 1].isnan().all() and y[1:].isfinite().all()


def test_what_is_not_handed_over(handed):
    module, query, memory = self_attention()
    module(query, memory, need_weights=False)  # parameters want gradients
    with torch.no_grad():
        module(query, memory)
        module(query, memory, need_weights=False, lengths=[40, 3, 0])
        module(query, memory[:, :31], need_weights=False)
        module(query[:, :0], memory, need_weights=False)
        for dtype in (torch.float64, torch.bfloat16):
            other = nn.MultiHeadAttention(16, 2, batch_first=True, dtype=dtype)
            other(query.to(dtype), memory.to(dtype), need_weights=False)
        nn.MultiHeadAttention(16, 2, dropout=0.1, batch_first=True)(query, memory, need_weights=False)
        nn.MultiHeadAttention(130, 2)(torch.randn(40, 1, 130), torch.randn(40, 1, 130), need_weights=False)
        with torch.autocast("cpu", torch.bfloat16):
            module(query, memory, need_weights=False)
        torch.func.vmap(lambda q: module(q, memory, need_weights=False)[0])(query[None])
    assert not handed
    with torch.no_grad():
        nn.MultiHeadAttention(16, 2, dropout=0.1, batch_first=True).eval()(query, memory, need_weights=False)
        module(query[:, :1], memory, need_weights=False)
    assert len(handed) == 2


@pytest.mark.parametrize("is_causal", [False, True])
def test_threads_give_the_same_bits_there_as_well(is_causal):
    q, k, v = (torch.randn(2, 3, T, 33) for T in (131, 140, 140))
    mask = torch.ones(131, 140, dtype=torch.bool).tril() if is_causal else torch.rand(2, 1, 1, 140) < 0.7
    before, found = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(_torch_attention.heads_context(q, k, v, mask, None, is_causal))
    torch.set_num_threads(before)
    assert all(torch.equal(y, found[0]) for y in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_heads_are_not_handed_over(handed):
    module, query, memory = self_attention()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    lengths = torch.tensor([40, 0, 7])
    with torch.no_grad():
        for options in ({}, {"lengths": lengths}):
            y = compiled(query, memory, need_weights=False, **options)[0]
            torch.testing.assert_close(y, module(query, memory, **options)[0])
    assert not handed


def test_handing_over_is_printed(capfd, monkeypatch):
    monkeypatch.setattr(_torch_attention, "_LOG", True)
    module, query, memory = self_attention()
    with torch.no_grad():
        module(query, memory, need_weights=False)
    line = "fastrnn: dot_attention_forward B=3 heads=2 L=35 S=40 D=8 -> torch scaled_dot_product_attention\n"
    assert capfd.readouterr().err == line


def test_lengths_of_heads_are_those_of_the_kernel():
    """What lies past them is not read, precomputed NaN included, whether weights are wanted or not."""
    module, query, memory = self_attention()
    lengths = torch.tensor([40, 0, 7])
    keys = module.precompute(memory)
    spoiled = tuple(t.detach().clone() for t in keys)
    for t in spoiled:
        t[1], t[2, :, 7:] = math.nan, math.inf
    ignored = torch.arange(40) >= lengths[:, None]
    for options in ({}, {"attn_mask": torch.rand(35, 40) < 0.3}, {"is_causal": True}):
        want, weights = module(query, keys=keys, key_padding_mask=ignored, **options)
        for need in (True, False):
            y, found = module(query, keys=spoiled, lengths=lengths, need_weights=need, **options)
            torch.testing.assert_close(y, want)
            assert not need or torch.allclose(found, weights)
    with pytest.raises(fastrnn.ShapeError, match="MultiHeadAttention: lengths has 41, expected 0 <= lengths <= T = 40"):
        module(query, memory, lengths=[40, 41, 0])
