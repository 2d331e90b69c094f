"""Count tokens before texts are sent, and cut what the model would not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cards import ModelCard
from ..errors import ConfigError


class TokenCutter:
    """A model's tokenizer, for texts that are sent as text.

    A cut falls between two tokens, so that reading the shorter text again gives the ids that a model that cuts by ids
    would read. For WordPiece (bge-*-en, bge-*-zh) this is exact, since its longest-match rule never looks back; for
    XLM-R's unigrams (bge-m3) the last token or two may differ.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._special = tokenizer.num_special_tokens_to_add(is_pair=False)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def cut(self, texts: list[str], max_tokens: int) -> tuple[list[str], list[int], list[int]]:
        """Return the texts cut to ``max_tokens``, the positions of those that were longer, and all token counts."""
        counts = self.count(texts)
        long = [i for i, count in enumerate(counts) if count > max_tokens]
        cut = list(texts)
        for i in long:
            offsets = self._tokenizer.encode(texts[i], add_special_tokens=False).offsets
            cut[i] = texts[i][: offsets[max_tokens - self._special - 1][1]]
            counts[i] = max_tokens
        return cut, long, counts


def find_tokenizer(card: ModelCard, tokenizer: Any = None) -> TokenCutter | None:
    """Return a cutter for the model, or None where its tokenizer is not on this machine; the network is never used.

    Args:
        card: the model; its folder, or else the hub's cache at its pinned revision, is looked into.
        tokenizer: a ``tokenizer.json``, its folder, or a ``tokenizers.Tokenizer`` instead.

    Raises:
        ConfigError: ``tokenizer`` is given and cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        if tokenizer is not None:
            raise ConfigError("tokenizer= needs the package tokenizers: pip install tokenizers") from None
        return None
    if isinstance(tokenizer, Tokenizer):
        return TokenCutter(Tokenizer.from_str(tokenizer.to_str()))
    path = _given(tokenizer) if tokenizer is not None else _on_this_machine(card)
    if path is None:
        return None
    try:
        return TokenCutter(Tokenizer.from_file(str(path)))
    except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exception
        raise ConfigError(f"{str(path)!r} cannot be read as a tokenizer: {error}") from None


def _given(tokenizer: Any) -> Path:
    path = Path(tokenizer).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"no tokenizer at {str(path)!r}")
    return path


def _on_this_machine(card: ModelCard) -> Path | None:
    if card.folder is not None:
        path = Path(card.folder) / "tokenizer.json"
        return path if path.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(card.id, "tokenizer.json", revision=card.revision)
    return Path(found) if isinstance(found, str) else None
