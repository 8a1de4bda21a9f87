"""Dates as 43 locales write them to ISO 8601: an encoder-decoder with additive attention, in fastrnn and in plain
torch.

The data are the date formats of CLDR, from the package babel: "Dienstag, 3. März 2026", "03/03/26", "2026年3月3日" and so
on, each with the name of its locale in front, as 03/04 is not the same day everywhere. Both models start from the same
weights and see the same batches, in turns; afterwards they read dates that no training batch had.

python examples/transduction.py               # some minutes;  needs: pip install fastrnn[torch,demo]
"""

import argparse
import datetime
import random
import time

import torch
from babel.dates import format_date
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import fastrnn
from fastrnn import plots

LOCALES = """ar bg bn ca cs da de el en en_GB es et eu fa fi fr he hi hr hu id it ja ka ko lt lv nl nb pl pt ro ru sk sl
sv sw ta th tr uk vi zh""".split()
STYLES = ("short", "medium", "long", "full")
FIRST, DAYS = datetime.date(1970, 1, 1), 36525  # to 2069, so that a year of two digits is one year
TARGET = "0123456789-<>"  # "<" begins and ">" ends
SHOWN = [("de", "full"), ("en", "short"), ("ru", "full"), ("en_GB", "short")]


class PlainAttention(nn.Module):
    """Additive attention as it is usually written."""

    def __init__(self, query_size: int, memory_size: int, attention_size: int) -> None:
        super().__init__()
        self.query_layer = nn.Linear(query_size, attention_size, bias=False)
        self.memory_layer = nn.Linear(memory_size, attention_size)
        self.v = nn.Parameter(torch.empty(attention_size))

    def forward(self, query: Tensor, memory: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        energy = torch.tanh(self.query_layer(query).unsqueeze(2) + self.memory_layer(memory).unsqueeze(1))
        beyond = torch.arange(memory.shape[1]) >= lengths[:, None, None]
        weights = (energy @ self.v).masked_fill(beyond, -torch.inf).softmax(-1)
        return weights @ memory, weights


class Model(nn.Module):
    """Bidirectional GRU, GRU over what has been written, attention from the second to the first, linear layer."""

    def __init__(self, ours: bool, symbols: int, hidden: int) -> None:
        super().__init__()
        gru = fastrnn.nn.GRU if ours else nn.GRU
        attention = fastrnn.nn.AdditiveAttention if ours else PlainAttention
        self.ours = ours
        self.source, self.target = nn.Embedding(symbols, hidden), nn.Embedding(len(TARGET), hidden)
        self.encoder = gru(hidden, hidden, batch_first=True, bidirectional=True)
        self.decoder = gru(hidden, hidden, batch_first=True)
        self.attention = attention(hidden, 2 * hidden, hidden)
        self.start, self.out = nn.Linear(2 * hidden, hidden), nn.Linear(3 * hidden, len(TARGET))

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The memory [B, Tk, 2H] and the decoder's first state [1, B, H]."""
        if self.ours:
            memory, h = self.encoder(self.source(x), lengths=lengths)
        else:
            packed = pack_padded_sequence(self.source(x), lengths, batch_first=True, enforce_sorted=False)
            y, h = self.encoder(packed)
            memory, _ = pad_packed_sequence(y, batch_first=True)
        return memory, self.start(torch.cat((h[0], h[1]), -1)).tanh().unsqueeze(0)

    def decode(self, y: Tensor, state: Tensor, memory: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the symbols after each of y [B, Tq], the state behind them, and the weights [B, Tq, Tk]."""
        found, state = self.decoder(self.target(y), state)
        context, weights = self.attention(found, memory, lengths=lengths)
        return self.out(torch.cat((found, context), -1)), state, weights

    @torch.no_grad()
    def read(self, x: Tensor, lengths: Tensor) -> tuple[list[str], Tensor]:
        """The most probable symbol after each other: the dates, and the weights [B, 10, Tk]."""
        memory, state = self.encode(x, lengths)
        y = torch.full((len(x), 1), TARGET.index("<"))
        written, rows = [], []
        for _ in range(10):
            scores, state, weights = self.decode(y, state, memory, lengths)
            y = scores.argmax(-1)
            written.append(y)
            rows.append(weights)
        return ["".join(TARGET[i] for i in row) for row in torch.cat(written, 1).tolist()], torch.cat(rows, 1)


class Dates:
    """Random dates in random locales and styles, as numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        days = list(range(DAYS))
        self.random.shuffle(days)
        self.held_out, self.train = days[: DAYS // 10], days[DAYS // 10 :]
        week = [datetime.date(2026, month, day) for month in range(1, 13) for day in range(1, 8)]
        texts = [self.text(locale, style, day) for locale in LOCALES for style in STYLES for day in week]
        self.symbols = {c: i for i, c in enumerate(sorted({c for text in texts for c in text}))}

    def draw(self, days: list[int]) -> tuple[str, str, datetime.date]:
        day = FIRST + datetime.timedelta(self.random.choice(days))
        return self.random.choice(LOCALES), self.random.choice(STYLES), day

    def text(self, locale: str, style: str, day: datetime.date) -> list[str]:
        return [locale, *format_date(day, style, locale=locale)]

    def tensors(self, drawn: list[tuple[str, str, datetime.date]]) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, Tk], its lengths [B], and the targets [B, 12] with both marks."""
        rows = [torch.tensor([self.symbols[c] for c in self.text(*d)]) for d in drawn]
        y = torch.tensor([[TARGET.index(c) for c in f"<{d[2].isoformat()}>"] for d in drawn])
        return pad_sequence(rows, batch_first=True), torch.tensor([len(r) for r in rows]), y

    def batch(self, days: list[int], size: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.tensors([self.draw(days) for _ in range(size)])


def train_step(model: Model, optimiser: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    x, lengths, y = batch
    optimiser.zero_grad()
    memory, state = model.encode(x, lengths)
    scores, _, _ = model.decode(y[:, :-1], state, memory, lengths)
    loss = nn.functional.cross_entropy(scores.flatten(0, 1), y[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def picture(model: Model, dates: Dates, path: str) -> None:
    from matplotlib.figure import Figure

    drawn = [(locale, style, datetime.date(2031, 8, 27)) for locale, style in SHOWN]
    x, lengths, _ = dates.tensors(drawn)
    read, weights = model.read(x, lengths)
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(5, 2))
    for ax, d, n, iso, w in zip(axes.flat, drawn, lengths.tolist(), read, weights):
        plots.plot_attention(w[:, :n], dates.text(*d), list(iso), ax=ax, title=f"{d[0]}, {d[1]}")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--held-out", type=int, default=2000, help="how many held-out dates are read")
    parser.add_argument("--picture", default="alignment.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dates = Dates(seed=0)
    models = {name: Model(name == "fastrnn", len(dates.symbols), options.hidden) for name in ("torch", "fastrnn")}
    models["torch"].load_state_dict(models["fastrnn"].state_dict())
    optimisers = {name: torch.optim.Adam(m.parameters(), lr=2e-3, fused=True) for name, m in models.items()}
    losses, seconds = {name: [] for name in models}, dict.fromkeys(models, 0.0)
    print(f"{len(LOCALES)} locales, {len(dates.symbols)} symbols, {options.steps} steps of {options.batch} dates")
    for step in range(options.steps):
        batch = dates.batch(dates.train, options.batch)
        for name in models if step % 2 else reversed(models):
            for group in optimisers[name].param_groups:
                group["lr"] = 2e-3 * (1 - step / options.steps)
            began = time.perf_counter()
            losses[name].append(train_step(models[name], optimisers[name], batch))
            seconds[name] += time.perf_counter() - began
        if (step + 1) % max(1, options.steps // 10) == 0:
            print(f"step {step + 1:5}  loss " + "  ".join(f"{name} {losses[name][-1]:.5f}" for name in models))
    early = max(abs(a - b) for a, b in zip(losses["torch"][:100], losses["fastrnn"][:100]))
    print(f"largest difference of the losses in the first {min(100, options.steps)} steps: {early:.1e}")

    x, lengths, y = dates.batch(dates.held_out, options.held_out)
    wanted = ["".join(TARGET[i] for i in row[1:-1]) for row in y.tolist()]
    for name, model in models.items():
        right = sum(a == b for a, b in zip(model.read(x, lengths)[0], wanted)) / len(wanted)
        print(f"{name:8} {seconds[name]:7.1f} s of training, {right:6.1%} of {len(wanted)} held-out dates read exactly")
    print(f"plain torch took {seconds['torch'] / seconds['fastrnn']:.2f} times as long")
    picture(models["fastrnn"], dates, options.picture)
    assert early < 1e-3


if __name__ == "__main__":
    main()
