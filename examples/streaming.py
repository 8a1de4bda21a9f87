"""Audio as it arrives: one LSTM step per 10 ms frame, and the same numbers as on the whole recording.

python examples/streaming.py
"""

import math
import statistics
import time

import torch

import fastrnn

RATE, FRAME, SECONDS = 16000, 160, 5  # samples per second, samples per 10 ms frame


def recording() -> torch.Tensor:
    """A siren between 400 and 1200 Hz that fades in and out, with some hiss."""
    t = torch.arange(RATE * SECONDS) / RATE
    pitch = 800 + 400 * torch.sin(2 * math.pi * 0.5 * t)
    siren = torch.sin(2 * math.pi * torch.cumsum(pitch, 0) / RATE) * torch.sin(math.pi * t / SECONDS)
    return siren + 0.05 * torch.randn(len(t))


def features(samples: torch.Tensor) -> torch.Tensor:
    """Log energy in 40 equal bands of each frame: [frames, 1, 40]."""
    spectrum = torch.fft.rfft(samples.view(-1, FRAME)).abs()[:, 1:]
    return (spectrum.view(len(spectrum), 40, -1).square().mean(-1) + 1e-6).log().unsqueeze(1)


def main() -> None:
    torch.manual_seed(0)
    x = features(recording())
    model = fastrnn.nn.LSTM(40, 128, num_layers=2)
    with torch.no_grad():
        whole, (h, c) = model(x)

        step = model.stepper(batch_size=1)  # copies the weights once, keeps the state inside
        frames, seconds = [], []
        for frame in x:
            start = time.perf_counter()
            y = step(frame)  # [1, 40] -> [1, 128]
            seconds.append(time.perf_counter() - start)
            frames.append(y.clone())
    difference = (torch.cat(frames) - whole.squeeze(1)).abs().max().item()
    print(f"{len(x)} frames of 10 ms, LSTM 40 -> 128 -> 128")
    print(f"largest difference between the stream and the whole recording: {difference:.1e}")
    print(f"median time of a step: {1e6 * statistics.median(seconds):.1f} us of the 10,000 us that a frame lasts")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
