"""A model's own tokenizer, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalog.local_folder import read_json
from ..errors import ModelLoadError
from ..extras import require


@dataclass(frozen=True)
class Tokens:
    """Texts, cut to what the model reads.

    Attributes:
        items: what ``forward`` takes, one for each text.
        lengths: tokens of each, special tokens included.
        truncated: positions of the texts that were longer.
    """

    items: list[Any]
    lengths: NDArray[np.int64]
    truncated: list[int]


class TextTokenizer:
    """Reads ``tokenizer.json``; cuts at ``max_tokens`` where it is given."""

    def __init__(self, folder: Path, max_tokens: int | None = None) -> None:
        self._tokenizer, side = open_tokenizer(folder / "tokenizer.json")
        if max_tokens is not None:
            self._tokenizer.enable_truncation(max_tokens, direction=side)

    def tokenize(self, texts: list[str]) -> Tokens:
        """Return the token ids of each text as int32 arrays, special tokens included."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        items = [np.array(encoding.ids, np.int32) for encoding in encodings]
        lengths = np.fromiter(map(len, items), np.int64, len(items))
        return Tokens(items, lengths, [i for i, encoding in enumerate(encodings) if encoding.overflowing])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]


def open_tokenizer(file: Path) -> tuple[Any, str]:
    """Return the tokenizer of a ``tokenizer.json``, neither padding nor cutting, and the side on which it would cut.

    Raises:
        MissingExtraError: tokenizers is not installed.
        ModelLoadError: the file cannot be read.
    """
    tokenizer = _read(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if _json(file.parent / "sentence_bert_config.json").get("do_lower_case"):
        _lower(tokenizer)
    return tokenizer, str(_json(file.parent / "tokenizer_config.json").get("truncation_side", "right"))


def _read(file: Path) -> Any:
    tokenizers = require("tokenizers", extra="local", purpose="a local model")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelLoadError(f"{str(file)!r} cannot be read: {error}") from error


def _lower(tokenizer: Any) -> None:
    """Lower-case as sentence-transformers does where a model's configuration asks for it."""
    from tokenizers.normalizers import Lowercase, Sequence

    old = tokenizer.normalizer
    if old is None:
        tokenizer.normalizer = Lowercase()
    elif '"lowercase":true' not in tokenizer.to_str() and '"Lowercase"' not in tokenizer.to_str():
        tokenizer.normalizer = Sequence([Lowercase(), old])


def _json(path: Path) -> dict[str, Any]:
    data = read_json(path)
    return data if isinstance(data, dict) else {}
