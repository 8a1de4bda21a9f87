"""Train with torch, deploy without: weights in a file, a process that never imports torch, the same numbers.

python examples/numpy_only.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def save(folder: Path) -> None:
    """On the machine with torch: the weights, and a recording with torch's answer to compare with."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.GRU(40, 64, num_layers=2)
    x = torch.sin(torch.arange(200.0)[:, None, None] * torch.linspace(0.01, 1, 40))  # [T, 1, 40], 40 tones
    with torch.no_grad():
        y, _ = model(x)
    np.savez(folder / "weights.npz", **{name: w.numpy() for name, w in model.state_dict().items()})
    np.savez(folder / "recording.npz", x=x.numpy(), y=y.numpy())


def run(folder: Path) -> None:
    """On the machine without torch: NumPy and fastrnn only."""
    sys.modules["torch"] = None  # importing torch would now fail, as if it were not installed
    import fastrnn

    gru = fastrnn.numpy.GRU.from_state_dict(np.load(folder / "weights.npz"))
    recording = np.load(folder / "recording.npz")
    x, expected = recording["x"], recording["y"]
    y, h = gru(x)
    step = gru.stepper(batch_size=1)
    stream = np.stack([step(frame).copy() for frame in x])
    print(f"GRU 40 -> 64 -> 64 on {type(x).__module__}.{type(x).__name__} {x.shape}, {y.dtype}")
    print(f"largest difference from torch: {np.abs(y - expected).max():.1e}")
    print(f"largest difference of the stepper from the whole sequence: {np.abs(stream - y).max():.1e}")
    print(f"torch was imported: {sys.modules['torch'] is not None}")
    assert np.abs(y - expected).max() < 1e-5 and np.array_equal(stream, y) and np.array_equal(h[-1], y[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        save(Path(name))
        subprocess.run([sys.executable, __file__, name], check=True)  # a process of its own, see below


if __name__ == "__main__":
    run(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
