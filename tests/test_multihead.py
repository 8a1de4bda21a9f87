"""MultiHeadAttention against torch.nn.MultiheadAttention."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fastrnn import nn  # noqa: E402

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
