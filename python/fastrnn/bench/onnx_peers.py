"""onnxruntime and openvino, each with a one-node ONNX model whose weights are constants, at their best settings.

Models are built once for their thread count; inputs and outputs are preallocated and bound, which was the faster way to
call both (7.0 against 11.2 us for an onnxruntime LSTM step, H = 64, B = 1). In step mode the state goes back into the
next call through two alternating sets of buffers, without copies.
"""

from __future__ import annotations

import io

import numpy as np

from .cases import GATES, Case, Contestant, Data

_GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}  # i f g o -> i o f c; r z n -> z r h


def model_bytes(case: Case, data: Data) -> bytes:
    """A model of one node; step mode has T = 1 and the state as input and output."""
    from onnx import TensorProto, helper, numpy_helper

    gates, h = GATES[case.cell], case.hidden
    order = np.array(_GATE_ORDER[case.cell])
    parts = {k: p.detach().numpy().reshape(gates, h, -1)[order] for k, p in data.module.named_parameters()}
    constants = {
        "W": parts["weight_ih_l0"].reshape(1, gates * h, h),
        "R": parts["weight_hh_l0"].reshape(1, gates * h, h),
        "Bias": np.concatenate([parts["bias_ih_l0"].ravel(), parts["bias_hh_l0"].ravel()])[None],
    }
    step, states = case.mode == "step", ["h", "c"][: 2 if case.cell == "lstm" else 1]
    steps = 1 if step else case.steps
    tensor = helper.make_tensor_value_info
    inputs = [tensor("x", TensorProto.FLOAT, [steps, case.batch, h])]
    outputs = [] if step else [tensor("y", TensorProto.FLOAT, [steps, 1, case.batch, h])]
    outputs += [tensor(s, TensorProto.FLOAT, [1, case.batch, h]) for s in states]
    names = ["x", *constants]
    if step:
        inputs += [tensor(f"{s}_in", TensorProto.FLOAT, [1, case.batch, h]) for s in states]
        names += ["", *(f"{s}_in" for s in states)]
    options = {"linear_before_reset": 1} if case.cell == "gru" else {}
    node = helper.make_node(case.cell.upper(), names, ["" if step else "y", *states], hidden_size=h, **options)
    tensors = [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph([node], "layer", inputs, outputs, tensors)
    opset = [helper.make_opsetid("", 14)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def _result(case: Case, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = {k: v.reshape(case.batch, case.hidden) for k, v in arrays.items() if k in ("h", "c")}
    if "y" in arrays:
        named["y"] = arrays["y"].reshape(case.steps, case.batch, case.hidden)
    return named


def onnxruntime(case: Case, data: Data, threads: int) -> Contestant:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model_bytes(case, data), options, providers=["CPUExecutionProvider"])
    outputs = {o.name: o.shape for o in session.get_outputs()}
    return (_ort_step if case.mode == "step" else _ort_sequence)(case, data, session, outputs)


def _ort_sequence(case, data, session, outputs) -> Contestant:
    import onnxruntime as ort

    values = {k: ort.OrtValue.ortvalue_from_numpy(np.empty(s, np.float32)) for k, s in outputs.items()}
    values["x"] = ort.OrtValue.ortvalue_from_numpy(data.x.numpy())
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", values["x"])
    for name in outputs:
        binding.bind_ortvalue_output(name, values[name])

    def result(_):
        return _result(case, {k: values[k].numpy() for k in outputs})

    return Contestant(lambda: session.run_with_iobinding(binding), result, keep=[values])


def _ort_step(case, data, session, outputs) -> Contestant:
    import onnxruntime as ort

    value = ort.OrtValue.ortvalue_from_numpy
    states = [{k: value(np.zeros(shape, np.float32)) for k, shape in outputs.items()} for _ in range(2)]
    inputs, bindings = [value(np.ascontiguousarray(x[None])) for x in data.x.numpy()], []
    for t, x in enumerate(inputs):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x)
        for k in outputs:
            binding.bind_ortvalue_input(f"{k}_in", states[t % 2][k])
            binding.bind_ortvalue_output(k, states[1 - t % 2][k])
        bindings.append(binding)

    def run():
        for binding in bindings:
            session.run_with_iobinding(binding)
        return states[case.steps % 2]

    return Contestant(run, lambda s: _result(case, {k: v.numpy() for k, v in s.items()}), keep=[inputs])


def openvino(case: Case, data: Data, threads: int) -> Contestant:
    import openvino as ov

    core = ov.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(io.BytesIO(model_bytes(case, data))), "CPU", settings)
    outputs = {o.get_any_name(): list(o.shape) for o in compiled.outputs}
    keep: list = [compiled]

    def share(array):
        # A tensor made with shared_memory points into the array without owning it.
        array = np.require(array, np.float32, ["C", "W"])
        tensor = ov.Tensor(array, shared_memory=True)
        keep.extend((array, tensor))
        return tensor

    if case.mode != "step":
        request = compiled.create_infer_request()
        arrays = {k: np.empty(shape, np.float32) for k, shape in outputs.items()}
        request.set_tensor("x", share(data.x.numpy()))
        for k, array in arrays.items():
            request.set_tensor(k, share(array))
        return Contestant(
            lambda: request.infer(share_outputs=True), lambda _: _result(case, arrays), keep=[keep, request]
        )
    states = [{k: np.zeros(shape, np.float32) for k, shape in outputs.items()} for _ in range(2)]
    tensors = [{k: share(array) for k, array in side.items()} for side in states]
    requests = [compiled.create_infer_request() for _ in range(2)]
    for side, request in enumerate(requests):
        for k in outputs:
            request.set_tensor(f"{k}_in", tensors[side][k])
            request.set_tensor(k, tensors[1 - side][k])
    inputs = [share(x[None]) for x in data.x.numpy()]

    def run():
        for t, x in enumerate(inputs):
            request = requests[t % 2]
            request.set_tensor("x", x)
            request.infer(share_outputs=True)
        return states[case.steps % 2]

    return Contestant(run, lambda s: _result(case, s), keep=[keep, requests])
