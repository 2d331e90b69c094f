"""Everything that the packed engine does not know, through sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...catalog.records import ModelCard
from ...core.outputs import Output
from ...core.tokenizer import Tokens
from ...errors import ModelLoadError
from ...extras import require
from ..architecture import brief, foreign_code
from ..select import Choice
from .base import Backend
from .packed import set_threads


class SentenceTransformerBackend(Backend):
    """Computes any model that sentence-transformers loads; the model's saved prompts are never added."""

    padded = True

    def __init__(
        self,
        choice: Choice,
        card: ModelCard,
        folder: Path,
        *,
        trust_remote_code: bool = False,
        pooling: str | None = None,
    ) -> None:
        super().__init__(choice)
        self.model = load_model("SentenceTransformer", folder, choice, code=trust_remote_code)
        self.model.max_seq_length = min(card.max_tokens, self.model.max_seq_length or card.max_tokens)
        self.threads = set_threads()
        self.budget = 2048 if choice.device == "cpu" else 32_768
        size = _dimensions(self.model)
        if size not in (None, card.dimensions):
            raise ModelLoadError(f"{str(folder)!r} gives {size} dimensions, {card.id!r} has {card.dimensions}")
        if pooling is not None or not (folder / "modules.json").is_file():
            _set_pooling(self.model, pooling or card.pooling, card)

    def tokenize(self, texts: list[str]) -> Tokens:
        """Return the texts themselves, with what their tokens count to: the model tokenises them again."""
        limit = self.model.max_seq_length
        lengths = np.array(self.count(texts), np.int64)
        return Tokens(list(texts), np.minimum(lengths, limit), np.flatnonzero(lengths > limit).tolist())

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included."""
        encoded = self.model.tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def forward(self, items: Sequence[str], output: Output) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the pooled vectors of texts."""
        rows = self.model.encode(
            list(items),
            prompt="",  # an empty prompt keeps the saved default prompt away
            batch_size=len(items),  # the scheduler has cut the batch
            convert_to_tensor=True,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        return cast("NDArray[np.float32]", rows.float().cpu().numpy())


def load_model(kind: str, folder: Path, choice: Choice, *, code: bool, **options: Any) -> Any:
    """Load a folder with one of sentence-transformers' classes.

    Args:
        kind: the class's name.
        folder: of the model.
        choice: what was chosen.
        code: whether the folder's own code may run.
        **options: more arguments for the class.

    Raises:
        MissingExtraError: sentence-transformers or torch is not installed.
        ModelLoadError: the folder cannot be loaded, or needs its own code, which may not run.
    """
    foreign = "" if code else foreign_code(folder)
    if foreign:
        raise ModelLoadError(
            f"{str(folder)!r} needs its own code ({foreign}): if you trust it, pass trust_remote_code=True"
        )
    torch = require("torch", extra="local", purpose=repr(choice.model))
    sentence_transformers = require("sentence_transformers", extra="local", purpose=repr(choice.model))
    try:
        with without_bar():
            return getattr(sentence_transformers, kind)(
                str(folder),
                device=choice.device,
                trust_remote_code=code,
                local_files_only=True,
                model_kwargs={"dtype": getattr(torch, choice.precision)},
                **options,
            )
    except Exception as error:
        raise ModelLoadError(
            f"sentence-transformers cannot load {str(folder)!r} ({brief(error)}): is the folder complete?"
        ) from error


@contextmanager
def without_bar() -> Iterator[None]:
    """Keep the bar away that transformers shows while it reads weights: there is one per call here, of texts."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dimensions(model: Any) -> int | None:
    # The second name is the older one, and warns where the first is there, as in sentence-transformers 6.2.
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return cast("int | None", ask())


def _set_pooling(model: Any, pooling: str, card: ModelCard) -> None:
    """Pool as was asked, or as the card says where a folder does not (sentence-transformers would take the mean).

    Raises:
        ModelLoadError: the loaded model has no pooling that could be set.
    """
    mode = pooling.replace(" token", "token")
    index = next((i for i, module in enumerate(model) if type(module).__name__ == "Pooling"), None)
    if index is None:
        raise ModelLoadError(f"{card.id!r} has no pooling of its own and none could be set: save it with one")
    model[index] = type(model[index])(card.dimensions, pooling_mode=mode)
