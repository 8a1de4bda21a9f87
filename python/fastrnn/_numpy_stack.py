"""A stack of recurrent layers on NumPy arrays: weights in, checked once; arrays in, arrays out, one kernel call a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _core, threads
from ._checks import (
    STATE_NAMES,
    ShapeError,
    check_lengths,
    check_norm,
    check_probability,
    check_rank,
    check_reset_to,
    check_shape,
    check_size,
    check_weights,
    dtype_error,
    type_error,
    weight_names,
)
from ._head_stepper import HeadStepper
from ._heads import check_heads, join_units, split_rows, split_units
from ._stepper import Stepper

_WIDE = {"float32": np.float32, "float64": np.float64, "float16": np.float32}


def as_array(function: str, name: str, value: Any) -> np.ndarray:
    """A weight as a NumPy array; torch tensors are read without importing torch."""
    if isinstance(value, np.ndarray):
        return value
    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    raise type_error(function, name, value, "a numpy.ndarray or torch.Tensor")


def check_floats(function: str, name: str, array: Any) -> None:
    """Raises DTypeError unless this is a plain array of floats in native byte order."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise type_error(function, name, array, "a numpy.ndarray")
    if array.dtype.name not in _WIDE:
        raise dtype_error(function, name, array.dtype, "float32, float64 or float16")
    if not array.dtype.isnative:
        hint = f"; use {name}.astype({name}.dtype.newbyteorder('='))"
        raise dtype_error(
            function, name, f"{array.dtype.name} in foreign byte order", f"native {array.dtype.name}", hint
        )


def wide_dtype(array: np.ndarray) -> np.dtype:
    """The dtype in which an array of floats is computed."""
    return np.dtype(_WIDE[array.dtype.name])


def as_lengths(function: str, lengths: Any, T: int, B: int) -> np.ndarray | None:
    """Checked lengths as the kernels read them."""
    if lengths is None:
        return None
    try:
        array = np.asarray(lengths)
    except (OverflowError, TypeError, ValueError):
        raise type_error(function, "lengths", lengths, "integers [B]") from None
    if array.dtype.kind not in "iu" and array.size:
        raise dtype_error(function, "lengths", array.dtype, "integers")
    check_shape(function, "lengths", array.shape, "(B,)", (B,))
    if array.size:
        check_lengths(function, int(array.min()), int(array.max()), T)
    return np.require(array, np.int64, "CA")


class Recurrent:
    """What the classes of fastrnn.numpy share."""

    _function = ""
    _gates = 0

    def __init__(
        self,
        weights: Mapping[str, Any] | Sequence[Any],
        *,
        batch_first: bool = False,
        prefix: str = "",
        zoneout: float | tuple[float, float] = 0.0,
        num_heads: int = 1,
        reset_to: str = "zero",
    ):
        self.batch_first, self.num_heads, self.reset_to = batch_first, num_heads, reset_to
        check_reset_to(self._function, reset_to)
        pair = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout)
        for name, p in zip(("zoneout", "zoneout of c"), pair):
            check_probability(self._function, name, p)
        self.zoneout = (float(pair[0]), float(pair[1]) if len(self._state_names()) == 2 else 0.0)
        if not isinstance(weights, (Mapping, list, tuple)):
            raise type_error(self._function, "weights", weights, "a state_dict, or a list in torch's order")
        named = self._named(weights) if not isinstance(weights, Mapping) else weights
        if not all(isinstance(name, str) for name in named):
            raise type_error(
                self._function, "a name in weights", next(n for n in named if not isinstance(n, str)), "a str"
            )
        taken = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
        self._load(self._translated(taken), prefix)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], prefix: str = "", **options: Any) -> Any:
        """Builds the layer stack from the names and shapes of a torch `state_dict`.

        Args:
            state_dict: weight_ih_l0, weight_hh_l0, bias_ih_l0, ... -> array or tensor; copied.
            prefix: of the names, for instance "encoder.rnn."; other names are ignored only when a prefix is given.
            options: batch_first and those of the class.

        Raises:
            KeyError: names are missing or unexpected, all listed.
            ShapeError, DTypeError: a weight does not fit the others.
        """
        return cls(dict(state_dict), prefix=prefix, **options)

    @classmethod
    def from_safetensors(cls, path: Any, prefix: str = "", **options: Any) -> Any:
        """Reads the weights from a safetensors file (needs the safetensors package); bfloat16 becomes float32."""
        try:
            from safetensors import deserialize
        except ImportError as error:
            raise ImportError(
                "from_safetensors needs the safetensors package: pip install fastrnn[safetensors]"
            ) from error
        with open(path, "rb") as file:
            tensors = dict(deserialize(file.read()))
        named = {k: _from_bytes(cls._function, k, t) for k, t in tensors.items() if k.startswith(prefix)}
        return cls(named, prefix=prefix, **options)

    @classmethod
    def from_torch(cls, module: Any) -> Any:
        """Copies the weights and batch_first of a torch.nn or fastrnn.nn module."""
        options = {"batch_first": bool(getattr(module, "batch_first", False))}
        for name in (
            "nonlinearity",
            "reset_after",
            "coupled",
            "peepholes",
            "recurrent_activation",
            "layer_norm",
            "zoneout",
            "num_heads",
            "reset_to",
            "forget_gate",
        ):
            if name in cls.__init__.__kwdefaults__ and hasattr(module, name):
                options[name] = getattr(module, name)
        return cls(module.state_dict(), **options)

    def _named(self, weights: Sequence[Any]) -> dict[str, Any]:
        """Names for a plain list in torch's _flat_weights order of a one-directional stack without projection."""
        per_layer = 4 if len(weights) > 2 and np.ndim(weights[2]) == 1 else 2
        parts = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][:per_layer]
        return {f"{parts[i % per_layer]}_l{i // per_layer}": w for i, w in enumerate(weights)}

    def _translated(self, named: dict[str, Any]) -> dict[str, Any]:
        """The names and contents that _load() knows: each layer and direction through _translate()."""
        if type(self)._translate is Recurrent._translate:
            return named
        ends: dict[str, dict[str, Any]] = {}
        for name, value in named.items():
            part, mark, end = name.partition("_l")
            ends.setdefault(mark + end, {})[part] = as_array(self._function, name, value)
        return {part + end: w for end, own in ends.items() for part, w in self._translate(end, own).items()}

    def _translate(self, end: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One direction's weights, by name without the end, as weight_ih, weight_hh, bias_ih, bias_hh, weight_hr."""
        return own

    def _load(self, named: dict[str, Any], prefix: str) -> None:
        f = self._function
        if "weight_ih_l0" not in named or "weight_hh_l0" not in named:
            raise KeyError(f"{f}: {prefix}weight_ih_l0 or weight_hh_l0 is missing, got {sorted(named)[:8]}")
        self.num_layers = sum(f"weight_ih_l{k}" in named for k in range(len(named)))
        self.bidirectional = "weight_ih_l0_reverse" in named
        self.bias = "bias_ih_l0" in named
        projection = "weight_hr_l0" in named
        D = 2 if self.bidirectional else 1
        names = [weight_names(D, self.bias, projection, f"_l{k}") for k in range(self.num_layers)]
        wanted = [n for layer in names for n in layer]
        missing, unexpected = [n for n in wanted if n not in named], sorted(set(named) - set(wanted))
        if missing or unexpected:
            raise KeyError(f"{f}: state_dict lacks {missing} and has unexpected {unexpected}, expected {wanted}")
        arrays = {n: as_array(f, n, named[n]) for n in wanted}
        first = arrays["weight_ih_l0"]
        for n, a in arrays.items():
            check_floats(f, n, a)
            if a.dtype != first.dtype:
                raise dtype_error(f, n, a.dtype, f"{first.dtype} (the dtype of weight_ih_l0)")
        check_rank(f, "weight_ih_l0", first.shape, "(G*H, I)")
        self.hidden_size, self.input_size = first.shape[0] // self._gates, first.shape[1]
        self.proj_size = arrays["weight_hr_l0"].shape[0] if projection else 0
        check_size(f, "weight_ih_l0", "H", self.hidden_size)
        check_size(f, "weight_ih_l0", "I", self.input_size)
        out = self.proj_size or self.hidden_size
        self.dtype = wide_dtype(first)
        check_heads(f, self.num_heads, self.hidden_size, self.proj_size, getattr(self, "layer_norm", False))
        self._layers = []  # of each head of each layer
        for k, layer in enumerate(names):
            I = D * out if k else self.input_size
            shapes = [arrays[n].shape for n in layer]
            sizes, info = (I, self.hidden_size, self.proj_size), _core.CELLS[self._cell()]
            extras = info["vectors"], info["product"]
            check_weights(f, self._gates, shapes, *sizes, D, self.bias, f"_l{k}", k == 0, *extras, self.num_heads)
            own = self._five([np.array(arrays[n], self.dtype, order="C") for n in layer], D, projection)
            for d in range(0, len(own) if getattr(self, "layer_norm", False) else 0, 5):
                check_norm(f, self.hidden_size, *own[d + 2 : d + 4])
            parts = [w if w is None else split_rows(w, self.num_heads, self.hidden_size) for w in own]
            heads = range(self.num_heads)
            self._layers.append([[w if w is None else np.ascontiguousarray(w[n]) for w in parts] for n in heads])

    def _five(self, own: list[np.ndarray], D: int, projection: bool) -> list[np.ndarray | None]:
        n, five = len(own) // D, []
        for d in range(D):
            w = own[d * n : (d + 1) * n]
            five += [*w[:2], *(w[2:4] if self.bias else (None, None)), w[-1] if projection else None]
        return five

    def _cell(self) -> str:
        raise NotImplementedError

    def _state_names(self) -> tuple[str, ...]:
        return STATE_NAMES[: _core.CELLS[self._cell()]["states"]]

    def __call__(self, x: np.ndarray, state: Any = None, lengths: Any = None, reset_mask: Any = None) -> tuple:
        """Runs whole sequences.

        Args:
            x: [T, B, I] ([B, T, I] with batch_first) or unbatched [T, I]; float32, float64 or float16, any strides.
                float16 is computed in float32; otherwise the dtype of the weights.
            state: h0 [L*D, B, P or H], for an LSTM (h0, c0 [L*D, B, H]), for an sLSTM with n0 and m0 too; without B
                when unbatched; None for zeros.
            lengths: [B] integers in [0, T]: y is zero past them, the last state is the state there.
            reset_mask: bool [T, B] ([B, T] with batch_first), true where a new segment starts: no state crosses.

        Returns:
            y [T, B, D*(P or H)] in the layout of x, and the last state, shaped like `state`.

        Raises:
            ShapeError, DTypeError: naming the argument, what it is and what is expected.
        """
        f = self._function
        check_floats(f, "x", x)
        if wide_dtype(x) != self.dtype:
            raise dtype_error(f, "x", x.dtype, f"{self.dtype} (the dtype of the weights)")
        unbatched = x.ndim == 2
        if not unbatched:
            check_rank(f, "x", x.shape, "(B, T, I)" if self.batch_first else "(T, B, I)", " or (T, I)")
        batch_axis = 1 if unbatched or not self.batch_first else 0
        wide = self._rows(x[:, None] if unbatched else x)
        wide = wide if batch_axis else wide.transpose(1, 0, 2)
        T, B, I = wide.shape
        check_size(f, "x", "T", T)
        check_shape(f, "x", (I,), "(I,)", (self.input_size,))
        states = self._states(state, B, unbatched, x.dtype)
        lengths = as_lengths(f, lengths, T, B)
        mask = self._mask(reset_mask, T, B, unbatched)
        y, last = self._run(wide, states, lengths, mask, batch_axis)
        if unbatched:
            y, last = y[:, 0], [s[:, 0] for s in last]
        y, last = y.astype(x.dtype, copy=False), [s.astype(x.dtype, copy=False) for s in last]
        return y, tuple(last) if len(last) > 1 else last[0]

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """x with an aligned, contiguous last dimension in the computing dtype, copied only if it has to be."""
        whole = all(s % x.itemsize == 0 for s in x.strides)
        if x.dtype == self.dtype and x.flags.aligned and whole and (x.shape[-1] == 1 or x.strides[-1] == x.itemsize):
            return x
        return np.require(x, self.dtype, "CA")

    def _states(self, state: Any, B: int, unbatched: bool, dtype: np.dtype) -> list[np.ndarray]:
        names = self._state_names()
        rows, out = self.num_layers * (2 if self.bidirectional else 1), self.proj_size or self.hidden_size
        widths = [out, *[self.hidden_size] * (len(names) - 1)]
        if state is None:
            return [np.zeros((rows, B, w), self.dtype) for w in widths]
        values = state if len(names) > 1 else (state,)
        if not isinstance(values, (tuple, list)) or len(values) != len(names):
            expected = f"a {'pair' if len(names) == 2 else 'tuple'} ({', '.join(names)})"
            raise ShapeError(f"{self._function}: state is {type(state).__name__}, expected {expected}")
        found = []
        for name, v, width in zip(names, values, widths):
            check_floats(self._function, name, v)
            if v.dtype != dtype:
                raise dtype_error(self._function, name, v.dtype, f"{dtype} (the dtype of x)")
            symbols = "(L*D, H)" if unbatched else "(L*D, B, H)"
            check_shape(self._function, name, v.shape, symbols, (rows, width) if unbatched else (rows, B, width))
            found.append(np.require(v.reshape(rows, B, width), self.dtype, "CA"))
        return found

    def _mask(self, mask: Any, T: int, B: int, unbatched: bool) -> np.ndarray | None:
        if mask is None:
            return None
        if not isinstance(mask, np.ndarray):
            raise type_error(self._function, "reset_mask", mask, "a numpy.ndarray of bool")
        if mask.dtype != np.bool_:
            raise dtype_error(self._function, "reset_mask", mask.dtype, "bool")
        if unbatched:
            check_shape(self._function, "reset_mask", mask.shape, "(T,)", (T,))
            return mask[:, None]
        shape, symbols = ((B, T), "(B, T)") if self.batch_first else ((T, B), "(T, B)")
        check_shape(self._function, "reset_mask", mask.shape, symbols, shape)
        return mask.T if self.batch_first else mask

    def _run(
        self, x: np.ndarray, states: list[np.ndarray], lengths: Any, mask: Any, batch_axis: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        D = 2 if self.bidirectional else 1
        last = []
        for k, heads in enumerate(self._layers):
            own = [s[k * D : (k + 1) * D] for s in states]
            if len(heads) == 1:
                x, end = self._run_layer(heads[0], x, own, lengths, mask, batch_axis)
            else:
                parts = zip(*(map(np.ascontiguousarray, split_units(s, len(heads))) for s in own))
                found = [self._run_layer(w, x, [*s], lengths, mask, batch_axis) for w, s in zip(heads, parts)]
                x = join_units([y for y, _ in found], D, np.concatenate)
                end = [np.concatenate(of, -1) for of in zip(*(end for _, end in found))]
            last.append(end)
        return (x if batch_axis else x.transpose(1, 0, 2)), [np.concatenate(of) for of in zip(*last)]

    def _run_layer(
        self, weights: list, x: np.ndarray, states: list[np.ndarray], lengths: Any, mask: Any, batch_axis: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        T, B, I = x.shape
        (D, _, out), H = states[0].shape, self.hidden_size // self.num_heads
        if len(states) > 2:  # as the kernels take them, see _cells.join_states()
            states = [states[0], np.concatenate(states[1:], -1)]
        last = [np.empty_like(s) for s in states]
        # Allocated in the caller's layout, so that batch_first costs no transposition.
        width = D * out
        y = np.empty((T, B, width), x.dtype) if batch_axis else np.empty((B, T, width), x.dtype).transpose(1, 0, 2)
        _core.rnn_forward(
            self._cell(), x.itemsize, T, B, I, H, self.proj_size, D, x.ctypes.data, *_steps(x),
            [0 if w is None else w.ctypes.data for w in weights], [s.ctypes.data for s in states],
            0 if lengths is None else lengths.ctypes.data, 0 if mask is None else mask.ctypes.data,
            *((0, 0) if mask is None else mask.strides), y.ctypes.data, *_steps(y), [s.ctypes.data for s in last], 0, "",
            threads.current(), (0, *self.zoneout, False, 0, 0.0, True) if any(self.zoneout) else None, None,
            self.reset_to == "initial",
        )  # fmt: skip
        beyond = _core.CELLS[self._cell()]["states"] - 1
        return y, last if beyond <= 1 else [last[0], *np.split(last[1], beyond, -1)]

    def stepper(self, batch_size: int = 1) -> Stepper | HeadStepper:
        """A stepper with copies of these weights: `y = step(x [B, I])`, state kept inside.

        Raises:
            ValueError: the stack is bidirectional.
        """
        if self.bidirectional:
            raise ValueError(f"{self._function}: stepper() needs one direction, expected no *_reverse weights")
        layers = [[tuple(w) for w in heads] for heads in self._layers]
        if self.num_heads > 1:
            return HeadStepper(self._cell(), layers, batch_size, "numpy", self.zoneout)
        return Stepper(self._cell(), [w for (w,) in layers], batch_size, "numpy", self.zoneout)


def _steps(a: np.ndarray) -> tuple[int, int]:
    """Strides over t and b in elements."""
    return a.strides[0] // a.itemsize, a.strides[1] // a.itemsize


def _from_bytes(function: str, name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    """One entry of a safetensors file (little-endian, row-major)."""
    kind, shape, data = tensor["dtype"], tensor["shape"], bytes(tensor["data"])
    if kind == "BF16":  # NumPy has no bfloat16: its bits are the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in ("F16", "F32", "F64"):
        raise dtype_error(function, name, kind, "F16, BF16, F32 or F64")
    return np.frombuffer(data, f"<f{int(kind[1:]) // 8}").reshape(shape)
