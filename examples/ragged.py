"""Rows of different lengths without packing: each line of a text through a bidirectional GRU, blank lines included.

python examples/ragged.py
"""

import argparse

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import fastrnn


def main() -> None:
    torch.manual_seed(0)
    lines = argparse.__doc__.splitlines()
    rows = [torch.tensor(list(line.encode()), dtype=torch.long) for line in lines]
    lengths = torch.tensor([len(row) for row in rows])  # any order, zero allowed
    embedding = torch.nn.Embedding(256, 32)
    model = fastrnn.nn.GRU(32, 64, bidirectional=True)
    theirs = torch.nn.GRU(32, 64, bidirectional=True)
    theirs.load_state_dict(model.state_dict())

    with torch.no_grad():
        x = embedding(pad_sequence(rows))  # [T, B, 32]
        y, h = model(x, lengths=lengths)  # y [T, B, 128], h [2, B, 64]

        some = lengths > 0  # torch takes no empty rows
        packed = pack_padded_sequence(x[:, some], lengths[some], enforce_sorted=False)
        expected = theirs(packed)[1]

    print(f"{len(lines)} lines of 0 to {lengths.max()} characters, {int((~some).sum())} of them empty")
    print(f"padding makes up {1 - lengths.sum() / x[..., 0].numel():.0%} of the batch")
    difference = (h[:, some] - expected).abs().max().item()
    print(f"final states, largest difference from torch.nn.GRU on a PackedSequence: {difference:.1e}")
    past = torch.arange(len(x))[:, None] >= lengths
    print(f"outputs past the end of a row are zero: {bool((y[past] == 0).all())}")
    print(f"an empty row keeps its initial state: {bool((h[:, ~some] == 0).all())}")
    assert difference < 1e-5 and (y[past] == 0).all() and (h[:, ~some] == 0).all()


if __name__ == "__main__":
    main()
