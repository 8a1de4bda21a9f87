"""One time step at a time, for streams and agents: `y = step(x)`.

The weights are packed once and the state stays inside. A step runs on the calling thread and allocates nothing, takes
no lock and makes no system call; it computes the same bits as the module does on a whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core
from ._checks import (
    STATE_NAMES,
    DTypeError,
    ShapeError,
    check_shape,
    check_size,
    check_weights,
    device_error,
    dtype_error,
    type_error,
)

_NUMPY_DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float32, "bfloat16": np.float32}


_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def _dtype_name(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


class _NumPy:
    """Arrays as the stepper needs them; _Torch is the same for tensors."""

    kind, exchange = np.ndarray, None

    @staticmethod
    def check(name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise type_error("stepper", name, array, "a numpy.ndarray")

    @staticmethod
    def to_numpy(array: Any, dtype: type) -> np.ndarray:
        return np.require(array, dtype, "CA")

    @staticmethod
    def view(buffer: np.ndarray, name: str) -> Any:
        return buffer if buffer.dtype.name == name else np.empty(buffer.shape, name)

    @staticmethod
    def copy(array: np.ndarray, name: str) -> Any:
        return array.astype(name)


class _Torch:
    def __init__(self) -> None:
        import torch

        from . import _tensor_checks

        self.torch, self.kind, self.checks = torch, torch.Tensor, _tensor_checks
        # Reads a tensor's address, shape and dtype in one C call instead of seven Python ones.
        self.exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)

    def check(self, name: str, array: Any) -> None:
        self.checks.check_dense("stepper", name, array)
        if not array.is_cpu:
            raise device_error("stepper", name, array.device, "cpu")
        self.checks.check_memory("stepper", name, array)

    def to_numpy(self, array: Any, dtype: type) -> np.ndarray:
        wide = array.detach().to(getattr(self.torch, np.dtype(dtype).name))
        return np.require(wide.resolve_neg().numpy(), None, "CA")

    def view(self, buffer: np.ndarray, name: str) -> Any:
        shared = self.torch.from_numpy(buffer)
        return shared if buffer.dtype.name == name else self.torch.empty(buffer.shape, dtype=getattr(self.torch, name))

    def copy(self, array: np.ndarray, name: str) -> Any:
        return self.torch.from_numpy(array.copy()).to(getattr(self.torch, name))


class Stepper:
    """Runs a stack of one-directional layers step by step.

    Args:
        cell: name of the cell, one of fastrnn._core.CELLS.
        layers: for each layer (w_ih [G*H, I], w_hh [G*H, H or P], b_ih, b_hh [G*H] or None, w_hr [P, H] or None).
        batch_size: rows B of every step.
        framework: "numpy" or "torch": what x, y and the state are.
        zoneout: how much of h and of c stays as it was: the expectation of zoneout in training.

    Raises:
        ShapeError, DTypeError: a weight does not fit the others, or has a dtype other than float16, bfloat16, float32,
            float64.

    Example:
        >>> import numpy as np
        >>> step = Stepper("rnn_tanh", [(np.ones((4, 3), "f"), np.ones((4, 4), "f"), None, None, None)])
        >>> step(np.ones((1, 3), "f")).shape
        (1, 4)
    """

    __slots__ = (
        "_arrays", "_cell", "_dtype", "_kind", "_names", "_plain", "_shape", "_sizes", "_step_plain", "_stepper", "_wide",
        "_x_buffer", "_y", "_y_address", "_y_buffer", "batch_size",
    )  # fmt: skip

    def __init__(
        self,
        cell: str,
        layers: Sequence[tuple],
        batch_size: int = 1,
        framework: str = "numpy",
        zoneout: tuple = (0.0, 0.0),
    ):
        if framework not in ("numpy", "torch"):
            raise ValueError(f"stepper: framework is {framework!r}, expected 'numpy' or 'torch'")
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise DTypeError(f"stepper: batch_size is a {type(batch_size).__name__}, expected an int")
        check_size("stepper", "batch_size", "B", batch_size)
        if batch_size >= 1 << 31:
            raise ShapeError(f"stepper: batch_size is {batch_size}, expected less than 2^31")
        self._arrays = _NumPy() if framework == "numpy" else _Torch()
        self._kind, self._cell, self.batch_size = self._arrays.kind, cell, int(batch_size)
        self._names = STATE_NAMES[: _core.CELLS[cell]["states"]]
        self._dtype = _dtype_name(layers[0][0])
        if self._dtype not in _NUMPY_DTYPES:
            raise dtype_error("stepper", "weight_ih_l0", self._dtype, "float32, float64, float16 or bfloat16")
        self._wide = _NUMPY_DTYPES[self._dtype]
        self._sizes, weights = [], []
        for k, layer in enumerate(layers):
            weights += self._checked_layer(k, layer)
        addresses = [0 if w is None else w.ctypes.data for w in weights]
        wide = np.dtype(self._wide)
        self._stepper = _core.Stepper(cell, wide.itemsize, self.batch_size, self._sizes, addresses, zoneout)
        I, _, _ = self._sizes[0]
        _, H, P = self._sizes[-1]
        self._shape = (self.batch_size, I)
        self._x_buffer = np.zeros(self._shape, wide)
        self._y_buffer = np.zeros((self.batch_size, P or H), wide)
        self._y_address = self._y_buffer.ctypes.data
        self._y = self._arrays.view(self._y_buffer, self._dtype)
        self._plain = self._kind if wide.name == self._dtype else None  # the type of x that steps read in place
        self._step_plain = self._step_address
        if framework == "numpy" or self._arrays.exchange is not None:
            self._step_plain = self._stepper.bind(self._y_address, self._arrays.exchange)

    def __reduce_ex__(self, protocol: object) -> Any:
        """Copies and pickles would share the memory of the state or lack it."""
        raise TypeError(
            "stepper: cannot be copied or pickled, expected a new one from the module's stepper(), and its `state` assigned"
        )

    def _checked_layer(self, k: int, layer: tuple) -> list[np.ndarray | None]:
        w_ih, w_hh, b_ih, b_hh, w_hr = layer
        for name, w in zip(_PARTS, layer):
            if w is not None:
                self._arrays.check(f"{name}_l{k}", w)
            if w is not None and _dtype_name(w) != self._dtype:
                raise dtype_error(
                    "stepper", f"{name}_l{k}", _dtype_name(w), f"{self._dtype} (the dtype of weight_ih_l0)"
                )
        info = _core.CELLS[self._cell]
        gates = info["gates"]
        H, P = w_ih.shape[0] // gates, 0 if w_hr is None else w_hr.shape[0]
        I = w_ih.shape[1] if not self._sizes else self._sizes[-1][2] or self._sizes[-1][1]
        given = [w.shape for w in layer if w is not None]
        bias, first = b_ih is not None, k == 0
        check_weights("stepper", gates, given, I, H, P, 1, bias, f"_l{k}", first, info["vectors"], info["product"])
        self._sizes.append((I, H, P))
        return [None if w is None else self._arrays.to_numpy(w, self._wide) for w in layer]

    def __call__(self, x: Any) -> Any:
        """Advances by one step.

        Args:
            x: [B, I], or [I] when B is 1; the dtype of the weights.

        Returns:
            y: [B, P or H] (or [P or H]). The stepper owns this memory and overwrites it in the next call: keep
            y.copy() (NumPy) or y.clone() (torch) if you need it longer.

        Raises:
            ShapeError, DTypeError, DeviceError: x does not fit.
        """
        if type(x) is self._plain and self._step_plain(x):
            return self._y
        return self._step_any(x)

    def _step_address(self, x: Any) -> bool:
        """Does a step of a tensor if it is plain, for a torch without DLPack's exchange."""
        if not (
            x.shape == self._shape
            and x.dtype is self._y.dtype
            and x.layout is self._arrays.torch.strided
            and x.is_contiguous()
            and x.is_cpu
            and not x.is_neg()
            and (address := x.data_ptr())  # 0 where the storage was freed
            and not address % x.element_size()
        ):
            return False
        self._stepper.step(address, self._y_address)
        return True

    def _step_any(self, x: Any) -> Any:
        """Whatever is not the plain case: unbatched, strided, of a narrow dtype, or wrong."""
        self._arrays.check("x", x)
        if _dtype_name(x) != self._dtype or getattr(getattr(x, "dtype", None), "isnative", True) is False:
            raise dtype_error("stepper", "x", x.dtype, f"{self._dtype} (the dtype of the weights)")
        unbatched = len(x.shape) == 1 and self.batch_size == 1
        check_shape("stepper", "x", x.shape, "(I,)" if unbatched else "(B, I)", self._shape[unbatched:])
        self._x_buffer[...] = self._arrays.to_numpy(x, self._wide).reshape(self._shape)
        self._stepper.step(self._x_buffer.ctypes.data, self._y_address)
        if self._plain is None:
            self._y[...] = self._arrays.view(self._y_buffer, self._y_buffer.dtype.name)
        return self._y[0] if unbatched else self._y

    def _widths(self, name: str) -> list[int]:
        return [P or H if name == "h0" else H for _, H, P in self._sizes]

    @property
    def state(self) -> Any:
        """h [L, B, P or H], or with the states beyond it, (h, c [L, B, H]) for an LSTM: a copy; assign to it to continue
        from elsewhere."""
        self._uniform()
        widths = [self._widths(n)[0] for n in self._names]
        arrays = [np.empty((len(self._sizes), self.batch_size, w), self._wide) for w in (widths[0], sum(widths[1:]))]
        self._stepper.get_states([a.ctypes.data for a in arrays[: len(widths)]])
        whole = arrays[:1] + (np.split(arrays[1], len(widths) - 1, -1) if len(widths) > 1 else [])
        found = tuple(self._arrays.copy(np.ascontiguousarray(a), self._dtype) for a in whole)
        return found if len(found) > 1 else found[0]

    @state.setter
    def state(self, value: Any) -> None:
        values = tuple(value) if len(self._names) > 1 and isinstance(value, (tuple, list)) else (value,)
        if len(values) != len(self._names):
            names = ", ".join(self._names).replace("0", "")
            raise ShapeError(f"stepper: state has {len(values)} entries, expected {len(self._names)}: ({names})")
        self._uniform()
        arrays = []
        for name, v in zip(self._names, values):
            self._arrays.check(name, v)
            if _dtype_name(v) != self._dtype or getattr(v.dtype, "isnative", True) is False:
                raise dtype_error("stepper", name, v.dtype, f"{self._dtype} (the dtype of the weights)")
            expected = (len(self._sizes), self.batch_size, self._widths(name)[0])
            check_shape("stepper", name, v.shape, "(L, B, P or H)" if name == "h0" else "(L, B, H)", expected)
            arrays.append(self._arrays.to_numpy(v, self._wide))
        beyond = [np.ascontiguousarray(np.concatenate(arrays[1:], -1))] if len(arrays) > 1 else []
        self._stepper.set_states([a.ctypes.data for a in arrays[:1] + beyond])

    def _uniform(self) -> None:
        if any(len(set(self._widths(n))) > 1 for n in self._names):
            raise ShapeError(
                f"stepper: layers have widths {self._widths('h0')}, expected equal ones for one state array"
            )

    def reset(self, mask: Any = None) -> None:
        """Sets the state to zero.

        Args:
            mask: bool [B], rows to reset; None for all.

        Raises:
            ShapeError, DTypeError: the mask does not fit.
        """
        if mask is None:
            self._stepper.reset(0)
            return
        if not isinstance(mask, self._kind) or _dtype_name(mask) != "bool":
            got = _dtype_name(mask) if isinstance(mask, self._kind) else type(mask).__name__
            raise dtype_error("stepper", "mask", got, "bool")
        check_shape("stepper", "mask", mask.shape, "(B,)", (self.batch_size,))
        rows = self._arrays.to_numpy(mask, np.bool_)
        self._stepper.reset(rows.ctypes.data)
