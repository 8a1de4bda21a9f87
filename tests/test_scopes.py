"""Masks of attention against loops over queries and keys."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fastrnn import DTypeError, scopes  # noqa: E402

SIZES = [(1, 1), (3, 5), (5, 3), (4, 4), (1, 7), (0, 3), (3, 0)]


def loop(Tq, Tk, allowed):
    return torch.tensor([[allowed(q, k) for k in range(Tk)] for q in range(Tq)], dtype=torch.bool).reshape(Tq, Tk)


@pytest.mark.parametrize("bottom_right", [False, True])
@pytest.mark.parametrize(("Tq", "Tk"), SIZES)
def test_causal_and_sliding(Tq, Tk, bottom_right):
    shift = Tk - Tq if bottom_right else 0
    assert torch.equal(
        scopes.causal(Tq, Tk, bottom_right=bottom_right), loop(Tq, Tk, lambda q, k: k <= q + shift)
    )  # fmt: skip
    for before, after in ((0, 0), (1, 0), (1, 2), (0, 3)):
        if max(before, after) <= Tk:
            got = scopes.sliding_window(Tq, Tk, (before, after), bottom_right=bottom_right)
            want = loop(Tq, Tk, lambda q, k: q + shift - before <= k <= q + shift + after)  # noqa: B023
            assert torch.equal(got, want)


def test_sliding_with_one_number_is_local_m():
    assert torch.equal(scopes.sliding_window(5, 7, 2), scopes.local_window(torch.arange(5), 7, 2))


def test_local_window_and_gaussian():
    center = torch.tensor([[0.0, 2.5], [6.9, -3.0]], dtype=torch.float64, requires_grad=True)
    mask, bell = scopes.local_window(center, 8, 3), scopes.local_gaussian(center, 8, 3)
    for b in range(2):
        for q in range(2):
            p = center[b, q].item()
            assert mask[b, q].tolist() == [abs(k - p) <= 3 for k in range(8)]
            want = torch.tensor([-((k - p) ** 2) / (2 * 1.5**2) for k in range(8)], dtype=torch.float64)
            torch.testing.assert_close(bell[b, q].detach(), want)
    assert torch.autograd.gradcheck(lambda c: scopes.local_gaussian(c, 8, 3), center)
    # a bfloat16 position of 300.5 would be rounded to 300 and key numbers above 256 to even ones
    assert scopes.local_window(torch.tensor([300.0]).bfloat16(), 400, 1).sum() == 3


BAD = [
    (lambda: scopes.sliding_window(3, 4, 5), "sliding_window: window is 5, expected at most the number of keys, 4"),
    (lambda: scopes.sliding_window(3, 4, (0, -1)), "sliding_window: window is -1, expected an int of at least 0"),
    (lambda: scopes.sliding_window(3, 4, 1.5), "sliding_window: window is 1.5, expected an int"),
    (
        lambda: scopes.sliding_window(3, 4, (1, 2, 3)),
        r"sliding_window: window is \(1, 2, 3\), expected an int or a pair",
    ),
    (
        lambda: scopes.local_window(torch.zeros(3), 4, 9),
        "local_window: window is 9, expected at most the number of keys",
    ),
    (lambda: scopes.local_gaussian(torch.zeros(3), 4, 0), "local_gaussian: window is 0, expected an int of at least 1"),
    (lambda: scopes.causal(-1, 4), "causal: Tq is -1, expected an int of at least 0"),
    (lambda: scopes.causal(1, 4.0), "causal: Tk is 4.0"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[b[1][:40] for b in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_centers_are_named():
    with pytest.raises(DTypeError, match="local_window: center is a list, expected a torch.Tensor"):
        scopes.local_window([1.0], 4, 1)
    with pytest.raises(
        DTypeError, match="local_window: center has dtype torch.bool, expected an integer or a floating"
    ):
        scopes.local_window(torch.ones(2, dtype=torch.bool), 4, 1)
    with pytest.raises(ValueError, match="local_window: Tk is None, expected an int of at least 0"):
        scopes.local_window(torch.ones(2), None, 1)
    with pytest.raises(DTypeError, match="local_gaussian: center has dtype torch.int64"):
        scopes.local_gaussian(torch.arange(3), 4, 1)
