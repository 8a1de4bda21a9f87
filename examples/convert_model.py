"""An existing torch model: swap its recurrent layers for fastrnn's, in place, and back for export.

python examples/convert_model.py
"""

import torch

import fastrnn


class Tagger(torch.nn.Module):
    """Somebody's model: a part-of-speech tagger with a bidirectional LSTM somewhere inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(1000, 64)
        self.encoder = torch.nn.LSTM(64, 96, num_layers=2, bidirectional=True, batch_first=True)
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(192), torch.nn.Linear(192, 17))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(words))[0])


def main() -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    words = torch.randint(1000, (4, 30))
    weight = model.encoder.weight_hh_l0
    with torch.no_grad():
        before = model(words)
        model = fastrnn.convert(model)
        after = model(words)
    print(f"encoder is now {type(model.encoder).__module__}.{type(model.encoder).__name__}")
    print(f"largest difference of the tag scores: {(after - before).abs().max():.1e}")
    shared = model.encoder.weight_hh_l0.data_ptr() == weight.data_ptr()
    print(f"weights are shared, so optimisers and checkpoints stay valid: {shared}")

    model = fastrnn.to_torch(model)
    with torch.no_grad():
        back = model(words)
    print(
        f"and back: {type(model.encoder).__module__}.{type(model.encoder).__name__}, bit for bit: {back.equal(before)}"
    )
    assert (after - before).abs().max() < 1e-5 and shared and back.equal(before)


if __name__ == "__main__":
    main()
