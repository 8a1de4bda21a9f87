"""A recurrent decoder that attends to the outputs of an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module, Parameter

from .. import _checks
from .._tensor_checks import (
    autocast_dtype,
    check_dense,
    check_device,
    check_floats,
    check_integers,
    check_like,
    check_memory,
)
from ..decoder import DecoderWeights, attention_decoder
from ..generation import BeamSearch, Generated, beam_search, generate

State = Tensor | tuple[Tensor, Tensor] | None
_CHOICES = {"cell": ("lstm", "gru"), "attention": ("additive", "dot", "general"), "order": ("luong", "bahdanau")}


def _check_options(sizes: dict[str, int | None], choices: dict[str, str], input_feeding: bool | None) -> None:
    """Raises ValueError for sizes and options that no decoder has."""
    for name, size in sizes.items():
        if size is None and name in ("attention_size", "vocabulary_size"):
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"AttentionDecoder: {name} is {size!r}, expected an int of at least 1")
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            expected = ", ".join(map(repr, _CHOICES[name]))
            raise ValueError(f"AttentionDecoder: {name} is {value!r}, expected one of {expected}")
    attention, A, H = choices["attention"], sizes["attention_size"], sizes["hidden_size"]
    if attention != "additive" and A is not None:
        raise ValueError(f"AttentionDecoder: attention_size is {A}, expected None: {attention} has none")
    if attention == "dot" and sizes["memory_size"] != H:
        raise ValueError(
            f"AttentionDecoder: memory_size is {sizes['memory_size']}, expected hidden_size = {H} for the dot product"
        )
    if choices["order"] == "bahdanau" and input_feeding is not None:
        raise ValueError(
            f"AttentionDecoder: input_feeding is {input_feeding!r}, expected None: the context always enters the cell"
        )


class AttentionDecoder(Module):
    """An LSTM or GRU that attends to a memory at each step; all steps are one call.

    order "luong" (Luong et al. 2015, arXiv 1508.04025): the cell, then attention with its h, then the output
    h~ = tanh(W_c [context; h]); with input_feeding h~ enters the next step beside the input. order "bahdanau"
    (Bahdanau et al. 2015, arXiv 1409.0473): attention with h of the step before, its context enters the cell beside the
    input, and the output is h.

    Args:
        embedding_size: width E of the inputs.
        hidden_size: width H of state and output.
        memory_size: width M of the memory.
        attention_size: width A in which query and memory are added, for the additive score; hidden_size if absent.
        vocabulary_size: V; with it the module has an embedding and a vocabulary layer, takes tokens, and generates.
        cell: "lstm" or "gru".
        attention: the score: "additive" v . tanh(W_q h + W_m memory + b), "general" h . W_m memory, or "dot"
            h . memory, which needs memory_size = hidden_size.
        order: "luong" or "bahdanau".
        input_feeding: for Luong's order, True if absent. In Bahdanau's the context always enters the cell.
        bias: whether the cell and the vocabulary layer have biases.
        device, dtype: as in torch.nn.

    Example:
        >>> decoder = AttentionDecoder(8, 16, 16, vocabulary_size=30)
        >>> memory = torch.randn(2, 7, 16)
        >>> output, weights, state = decoder(torch.tensor([[1, 5, 3], [1, 4, 2]]), memory, lengths=[7, 4])
        >>> tokens = decoder.generate(memory, start=1, end=2, max_length=5, lengths=[7, 4]).tokens
    """

    def __init__(
        self,
        embedding_size: int,
        hidden_size: int,
        memory_size: int,
        attention_size: int | None = None,
        *,
        vocabulary_size: int | None = None,
        cell: str = "lstm",
        attention: str = "additive",
        order: str = "luong",
        input_feeding: bool | None = None,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = {"embedding_size": embedding_size, "hidden_size": hidden_size, "memory_size": memory_size}
        sizes |= {"attention_size": attention_size, "vocabulary_size": vocabulary_size}
        _check_options(sizes, {"cell": cell, "attention": attention, "order": order}, input_feeding)
        self.embedding_size, self.hidden_size, self.memory_size = embedding_size, hidden_size, memory_size
        self.vocabulary_size, self.cell, self.attention, self.order = vocabulary_size, cell, attention, order
        self.attention_size = (attention_size or hidden_size) if attention == "additive" else hidden_size
        self.input_feeding = order == "luong" and input_feeding is not False
        like = {"device": device, "dtype": dtype}
        fed = memory_size if order == "bahdanau" else hidden_size if self.input_feeding else 0
        rows = (4 if cell == "lstm" else 3) * hidden_size
        self.weight_ih = Parameter(torch.empty(rows, embedding_size + fed, **like))
        self.weight_hh = Parameter(torch.empty(rows, hidden_size, **like))
        self.bias_ih = Parameter(torch.empty(rows, **like)) if bias else None
        self.bias_hh = Parameter(torch.empty(rows, **like)) if bias else None
        additive = attention == "additive"
        self.query_layer = Linear(hidden_size, self.attention_size, bias=False, **like) if additive else None
        self.memory_layer = (
            None if attention == "dot" else Linear(memory_size, self.attention_size, bias=additive, **like)
        )
        self.v = Parameter(torch.empty(self.attention_size, **like)) if additive else None
        luong = order == "luong"
        self.output_layer = Linear(memory_size + hidden_size, hidden_size, bias=False, **like) if luong else None
        tokens = vocabulary_size is not None
        self.embedding = Embedding(vocabulary_size, embedding_size, **like) if tokens else None
        self.vocabulary_layer = Linear(hidden_size, vocabulary_size, bias=bias, **like) if tokens else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the cell as torch.nn.LSTMCell does, uniformly in +-1/sqrt(hidden_size), v in
        +-1/sqrt(attention_size), and the layers as torch.nn.Linear and Embedding do."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            if parameter is not None:
                torch.nn.init.uniform_(parameter, -bound, bound)
        if self.v is not None:
            bound = 1 / math.sqrt(self.attention_size)
            torch.nn.init.uniform_(self.v, -bound, bound)
        for layer in self.children():
            layer.reset_parameters()

    def precompute(self, memory: Tensor) -> Tensor:
        """The keys [B, Tk, A] of a memory [B, Tk, memory_size]: projected, or itself for the dot product."""
        self._check_memory(memory)
        return memory if self.memory_layer is None else self.memory_layer(memory)

    def weights(self) -> DecoderWeights:
        """The weights as fastrnn.functional.attention_decoder() takes them."""
        return DecoderWeights(
            self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh,
            None if self.query_layer is None else self.query_layer.weight, self.v,
            None if self.output_layer is None else self.output_layer.weight,
        )  # fmt: skip

    def forward(
        self,
        input: Tensor,
        memory: Tensor,
        state: State = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        keys: Tensor | None = None,
        feed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Decodes a given sequence (teacher forcing).

        Args:
            input: tokens [B, T], of an integer dtype, for a decoder with a vocabulary; else [B, T, embedding_size].
            memory: [B, Tk, memory_size].
            state: (h, c) of an LSTM, h of a GRU, each [B, hidden_size]; zeros if absent.
            lengths: [B] integers, how much of each memory is real.
            keys: precompute(memory), computed here when absent.
            feed: [B, hidden_size], the output before the first step with input feeding; zeros if absent.

        Returns:
            output [B, T, hidden_size] (its logits are vocabulary_layer(output)), weights [B, T, Tk], and the state.

        Raises:
            ShapeError, DTypeError, DeviceError: naming argument, what it is and what is expected.
        """
        check_dense("AttentionDecoder", "input", input)
        if self.embedding is not None and not input.dtype.is_floating_point:
            input = self._embedded(input)
        self._check_memory(memory)
        _checks.check_rank("AttentionDecoder", "input", input.shape, "(B, T, embedding_size)")
        _checks.check_shape(
            "AttentionDecoder", "input", input.shape, "(B, T, embedding_size)",
            (*input.shape[:2], self.embedding_size),
        )  # fmt: skip
        return attention_decoder(
            input, memory, self.weights(), state, keys=self.precompute(memory) if keys is None else keys,
            lengths=lengths, feed=feed, cell=self.cell, order=self.order,
        )  # fmt: skip

    @torch.no_grad()
    def generate(
        self,
        memory: Tensor,
        state: State = None,
        *,
        start: int | Tensor,
        end: int | None,
        max_length: int,
        lengths: Tensor | Sequence[int] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Generated:
        """Generates a sequence for each row of the memory, greedy or sampled.

        Args:
            memory, state, lengths: as in forward().
            start: the token that enters the first step, an int or integers [B].
            end: the token that ends a row, None for none.
            max_length: steps at most.
            temperature: 0 for the most probable token; above, tokens are drawn from softmax(logits / temperature).
            top_k: draw among that many most probable tokens.
            seed: of the drawing; from torch's generator if absent.

        Returns:
            Generated: tokens [B, L] and lengths [B], int64; weights [B, L, Tk]; log_probs [B, L].

        Raises:
            ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.
        """
        return generate(
            *self._generation("generate", memory), state, start=start, end=end, max_length=max_length,
            temperature=temperature, top_k=top_k, seed=seed, keys=self.precompute(memory), lengths=lengths,
            cell=self.cell, order=self.order,
        )  # fmt: skip

    @torch.no_grad()
    def beam_search(
        self,
        memory: Tensor,
        state: State = None,
        *,
        start: int | Tensor,
        end: int,
        max_length: int,
        lengths: Tensor | Sequence[int] | None = None,
        beams: int = 5,
        n_best: int = 1,
        length_penalty: float = 0.0,
        coverage_penalty: float = 0.0,
    ) -> BeamSearch:
        """The most probable sequences that a beam finds; fastrnn.functional.beam_search() has the scores' formula.

        Args:
            memory, state, lengths, start, max_length: as in generate().
            end: the token that ends a sequence.
            beams: sequences kept.
            n_best: N, sequences returned, at most `beams`.
            length_penalty, coverage_penalty: at least 0.

        Returns:
            BeamSearch, best first: tokens [B, N, L], lengths, scores and log_probs [B, N], weights [B, N, L, Tk].

        Raises:
            ShapeError, DTypeError, DeviceError, ValueError: naming argument, what it is and what is expected.
        """
        return beam_search(
            *self._generation("beam_search", memory), state, start=start, end=end, max_length=max_length, beams=beams,
            n_best=n_best, length_penalty=length_penalty, coverage_penalty=coverage_penalty,
            keys=self.precompute(memory), lengths=lengths, cell=self.cell, order=self.order,
        )  # fmt: skip

    def _generation(self, function: str, memory: Tensor) -> tuple:
        if self.embedding is None:
            raise ValueError(f"{function}: the decoder has no vocabulary, expected vocabulary_size at its construction")
        self._check_memory(memory)
        layer = self.vocabulary_layer
        return memory, self.weights(), self.embedding.weight, (layer.weight, layer.bias)

    def _embedded(self, tokens: Tensor) -> Tensor:
        check_integers("AttentionDecoder", "input", tokens)
        check_device("AttentionDecoder", "input", tokens, self.embedding.weight, "the parameters")
        check_memory("AttentionDecoder", "input", tokens)
        _checks.check_rank("AttentionDecoder", "input", tokens.shape, "(B, T)")
        return self.embedding(tokens.long())

    def _check_memory(self, memory: object) -> None:
        check_floats("AttentionDecoder", "memory", memory)
        check_memory("AttentionDecoder", "memory", memory)
        if autocast_dtype(memory) is None:
            check_like("AttentionDecoder", "memory", memory, self.weight_ih, "the parameters")
        _checks.check_rank("AttentionDecoder", "memory", memory.shape, "(B, Tk, memory_size)")
        expected = (*memory.shape[:2], self.memory_size)
        _checks.check_shape("AttentionDecoder", "memory", memory.shape, "(B, Tk, memory_size)", expected)

    def extra_repr(self) -> str:
        """The sizes and what differs from the defaults."""
        text = f"{self.embedding_size}, {self.hidden_size}, {self.memory_size}, {self.attention_size}"
        text += f", cell={self.cell!r}, attention={self.attention!r}, order={self.order!r}"
        return text if self.input_feeding or self.order == "bahdanau" else text + ", input_feeding=False"
