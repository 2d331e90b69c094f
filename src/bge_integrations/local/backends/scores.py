"""Rerankers: pairs in, one logit each out; packed on torch, a repository's ONNX file, or sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ...catalog.records import ModelCard
from ...core.outputs import Output
from ...core.pairs import SECOND, PairTokenizer
from ...core.reranker import Pair
from ...core.tokenizer import Tokens
from ...errors import ModelLoadError
from ..select import Choice
from .attention import PackedBatch
from .base import Backend
from .onnx import OnnxGraph
from .packed import PackedBackend, set_threads
from .sentence_transformers import load_model

if TYPE_CHECKING:
    from torch import Tensor

_HEADS = (
    ("classifier.dense", "classifier.out_proj"),  # XLM-R
    ("pooler.dense", "classifier"),  # BERT
)
"""Names of the two linear layers of a head; between them is a tanh."""


class Head:
    """What turns the first token's state into a logit, in float32 whatever the layers compute in.

    Raises:
        ModelLoadError: the weights have no head that is known here.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        names = next((pair for pair in _HEADS if all(f"{name}.weight" in weights for name in pair)), None)
        if names is None:
            raise ModelLoadError("the weights have no classifier: is this a reranker, and is the file complete?")
        (self.dense, self.dense_bias), (self.out, self.out_bias) = (
            tuple(weights.pop(f"{name}.{part}").float().cpu() for part in ("weight", "bias")) for name in names
        )

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one logit for each row of states."""
        import torch
        from torch.nn.functional import linear

        with torch.inference_mode():
            hidden = torch.tanh(linear(torch.from_numpy(states), self.dense, self.dense_bias))
            logits: NDArray[np.float32] = linear(hidden, self.out, self.out_bias)[:, 0].numpy()
        return logits


class PackedScores(PackedBackend):
    """BERT and XLM-R rerankers on torch without padding; of the last layer, only the first token is computed."""

    tokenizer: PairTokenizer

    def __init__(self, choice: Choice, weights: dict[str, Tensor], tokenizer: PairTokenizer) -> None:
        # Both before super().__init__, which takes out of weights what it knows and refuses the rest.
        self.head = Head(weights)
        types = weights["embeddings.token_type_embeddings.weight"]
        super().__init__(choice, weights, tokenizer, pooling="cls")
        # The vector of type 0 is in the positions already: a token of the second text differs by this.
        self.step = (types[1] - types[0]).float().to(choice.device) if len(types) > 1 else None

    @property
    def longest(self) -> int:
        """Tokens of the longest pair so far."""
        return self.tokenizer.longest

    def forward(self, items: Sequence[NDArray[np.int32]], output: Output) -> NDArray[np.float32]:
        """Return the logits of pairs that stand longest first."""
        return self.head(super().forward(items, output))

    def _embed(self, batch: PackedBatch) -> Tensor:
        """Return embeddings; a token of the second text is marked by ``SECOND`` in its id."""
        if self.step is None:
            return super()._embed(batch)
        second = batch.tokens >= SECOND
        batch.tokens = batch.tokens - second * SECOND
        return super()._embed(batch) + second[:, None] * self.step


class OnnxScores(OnnxGraph):
    """A reranker's own graph, whose output is the logit."""

    def __init__(self, choice: Choice, card: ModelCard, folder: Path) -> None:
        tokenizer = PairTokenizer.read(folder, card.max_tokens)
        super().__init__(choice, folder, tokenizer, ["logits"], "export the model with its head")

    @property
    def longest(self) -> int:
        """Tokens of the longest pair so far."""
        longest: int = self.tokenizer.longest
        return longest

    def forward(self, items: Sequence[NDArray[np.int32]], output: Output) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the logits of pairs."""
        return self.run(items)[0][:, 0]


class CrossEncoderScores(Backend):
    """Whatever else sentence-transformers' ``CrossEncoder`` loads and gives one logit a pair."""

    padded = True

    def __init__(self, choice: Choice, card: ModelCard, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(choice)
        self.model = load_model("CrossEncoder", folder, choice, code=trust_remote_code, max_length=card.max_tokens)
        self.threads = set_threads()
        self.budget = 2048 if choice.device == "cpu" else 32_768
        self.max_tokens = card.max_tokens

    def tokenize(self, texts: list[Pair]) -> Tokens:
        """Return the pairs themselves, with what their tokens count to: the model tokenises them again."""
        queries, passages = [pair.query for pair in texts], [pair.passage for pair in texts]
        encoded = self.model.tokenizer(queries, passages, truncation=False, verbose=False)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
        long = np.flatnonzero(lengths > self.max_tokens).tolist()
        return Tokens(list(texts), np.minimum(lengths, self.max_tokens), long)

    def forward(self, items: Sequence[Pair], output: Output) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the logits of pairs."""
        import torch

        logits = self.model.predict(
            [(pair.query, pair.passage) for pair in items],
            batch_size=len(items),  # the scheduler has cut the batch
            activation_fn=torch.nn.Identity(),  # else the sigmoid, the default for models with one label
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return cast("NDArray[np.float32]", logits.float().cpu().numpy())
