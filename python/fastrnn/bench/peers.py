"""The contestants: the same layer, weights and inputs in fastrnn, torch and the libraries of `onnx_peers`."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import onnx_peers
from .cases import Case, Contestant, Data

OURS, OWN_DENSE = "fastrnn", "own dense"
PEERS = ("torch", "onnxruntime", "openvino")


def versions() -> dict[str, str | None]:
    """Version of every peer, None where it cannot be used (the two ONNX peers need `onnx` to receive the weights)."""
    found: dict[str, str | None] = {}
    for name in PEERS:
        try:
            if name != "torch":
                importlib.import_module("onnx")
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    return found


def supports(name: str, case: Case) -> bool:
    """Whether a peer can do this kind of work at all; torch has no reset inside a sequence."""
    if name == "torch":
        return case.variant != "reset"
    return case.mode in ("infer", "step") and case.variant == "dense"


def build(name: str, case: Case, data: Data, threads: int | None = None) -> Contestant:
    """Build one contestant; `threads` overrides the case's, "own dense" is fastrnn without lengths and resets."""
    threads = threads or case.threads
    if name in ("onnxruntime", "openvino"):
        return getattr(onnx_peers, name)(case, data, threads)
    if name == "torch":
        contestant = _torch(case, data)
        contestant.activate = lambda: torch.set_num_threads(threads)
        return contestant
    contestant = _ours(case, data, dense=name == OWN_DENSE)
    contestant.activate = lambda: _set_threads(threads)
    return contestant


def reference(case: Case, data: Data) -> dict[str, np.ndarray]:
    """The float64 result of torch.nn; resets are done step by step with the state set to zero."""
    module = getattr(torch.nn, case.cell.upper())(case.hidden, case.hidden).double()
    module.load_state_dict(data.module.state_dict())
    x = data.x.double().requires_grad_(case.mode == "train")
    with torch.set_grad_enabled(case.mode == "train"):
        if data.lengths is not None:
            packed, state = module(pack_padded_sequence(x, data.lengths, enforce_sorted=False))
            y = pad_packed_sequence(packed, total_length=case.steps)[0]
        elif data.reset_mask is not None:
            y, state = _stepwise(case, module, x, data.reset_mask)
        else:
            y, state = module(x)
        if case.mode == "train":
            y.sum().backward()
    return _named(case, y, state, x.grad, module)


def _stepwise(case: Case, module, x, reset_mask):
    rows, state = [], None
    for t in range(case.steps):
        if state is not None:
            keep = ~reset_mask[t].view(1, -1, 1)
            state = tuple(s * keep for s in state) if case.cell == "lstm" else state * keep
        row, state = module(x[t : t + 1], state)
        rows.append(row)
    return torch.cat(rows), state


def worst_difference(result: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """Largest difference in any array both have, relative to the array's largest value where that exceeds one."""
    worst = 0.0
    for key in result.keys() & exact.keys():
        got, want = result[key].astype(np.float64), exact[key]
        if got.shape != want.shape:
            raise ValueError(f"worst_difference: {key} has shape {got.shape}, expected {want.shape}")
        difference = float(np.abs(got - want).max(initial=0.0) / max(1.0, np.abs(want).max(initial=0.0)))
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst


def _named(case: Case, y, state, dx=None, module=None) -> dict[str, np.ndarray]:
    """Arrays under the names that every contestant uses: y [T, B, H], h and c [B, H], gradients d*."""
    states = state if isinstance(state, tuple) else (state,)
    named = {k: s.reshape(case.batch, case.hidden) for k, s in zip(("h", "c"), states)}
    if case.mode != "step":
        named["y"] = y
    if case.mode == "train":
        named.update(dx=dx, **{f"d{name}": p.grad for name, p in module.named_parameters()})
    return {key: value.detach().numpy() for key, value in named.items()}


def _set_threads(threads: int) -> None:
    from fastrnn import _core

    torch.set_num_threads(threads)
    _core.set_num_threads(threads)


def _ours(case: Case, data: Data, dense: bool) -> Contestant:
    import fastrnn.nn

    module = getattr(fastrnn.nn, case.cell.upper())(case.hidden, case.hidden)
    module.load_state_dict(data.module.state_dict())
    if case.mode == "step":
        step, inputs = module.stepper(case.batch), [row.contiguous() for row in data.x]

        def run():
            for x in inputs:
                y = step(x)
            return y

        return Contestant(run, lambda y: _named(case, None, torch.as_tensor(y)))
    extra = {} if dense else {"lengths": data.lengths, "reset_mask": data.reset_mask}
    extra = {name: value for name, value in extra.items() if value is not None}
    return _sequence(case, data.x, module, lambda x: module(x, **extra))


def _torch(case: Case, data: Data) -> Contestant:
    if case.mode == "step":
        return _torch_cell(case, data)
    if data.lengths is None:
        return _sequence(case, data.x, data.module, data.module)
    # The packing is left out of the time, which favours torch.
    packed = pack_padded_sequence(data.x, data.lengths, enforce_sorted=False)

    def pack(values):
        return PackedSequence(values, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    def call(values):
        y, state = data.module(pack(values))
        return y.data, state

    def pad(values):
        return pad_packed_sequence(pack(values), total_length=case.steps)[0]

    return _sequence(case, packed.data, data.module, call, pad)


def _sequence(case: Case, x, module, call, pad=lambda values: values) -> Contestant:
    """Inference, or forward and backward of y.sum() down to the input, of anything with torch's interface."""

    def infer():
        with torch.inference_mode():
            return call(x)

    def train():
        x.grad = None
        for p in module.parameters():
            p.grad = None
        y, state = call(x)
        y.sum().backward()
        return y, state

    if case.mode == "infer":
        return Contestant(infer, lambda out: _named(case, pad(out[0]), out[1]))
    x = x.clone().requires_grad_()
    return Contestant(train, lambda out: _named(case, pad(out[0]), out[1], pad(x.grad), module))


def _torch_cell(case: Case, data: Data) -> Contestant:
    cell = getattr(torch.nn, case.cell.upper() + "Cell")(case.hidden, case.hidden)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in data.module.state_dict().items()})
    inputs, zero = [row.contiguous() for row in data.x], torch.zeros(case.batch, case.hidden)
    last = [(zero, zero) if case.cell == "lstm" else zero]

    def run():
        state = last[0]
        with torch.inference_mode():
            for x in inputs:
                state = cell(x, state)
        last[0] = state
        return state

    return Contestant(run, lambda state: _named(case, None, state))
