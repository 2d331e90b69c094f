"""Count tokens before texts are sent, and cut what the model would not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..catalog.records import ModelCard
from ..errors import ConfigError, MissingExtraError, ModelLoadError
from .tokenizer import open_tokenizer

_SLICE = 1024


class TokenCutter:
    """A model's tokenizer, for texts that are sent as text.

    A cut falls between two tokens, so that reading the shorter text again gives the ids that a model that cuts by ids
    would read. For WordPiece (bge-*-en, bge-*-zh) this is exact, since its longest-match rule never looks back; for
    XLM-R's unigrams (bge-m3) the last tokens may differ.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` without padding and truncation.
        side: which end of a text is lost.
    """

    def __init__(self, tokenizer: Any, side: str = "right") -> None:
        self._tokenizer, self._side = tokenizer, side
        self._special: int = tokenizer.num_special_tokens_to_add(is_pair=False)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included."""
        counts: list[int] = []
        for start in range(0, len(texts), _SLICE):  # an encoding is a hundred times larger than its text
            part = list(texts[start : start + _SLICE])
            counts += [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(part)]
        return counts

    def cut(self, texts: list[str], max_tokens: int) -> tuple[list[str], list[int], list[int]]:
        """Return the texts cut to ``max_tokens``, the positions of those that were longer, and all token counts."""
        # A token stands for a letter or more: what has few letters need not be counted exactly.
        counts = [len(text) // 4 + self._special + 1 for text in texts]
        unsure = [i for i, text in enumerate(texts) if not text.isascii() or len(text) > max_tokens - 8]
        for i, count in zip(unsure, self.count([texts[i] for i in unsure]), strict=True):
            counts[i] = count
        long = [i for i in unsure if counts[i] > max_tokens]
        cut = list(texts) if long else texts
        for i in long:
            cut[i], counts[i] = self._shorten(texts[i], max_tokens)
        return cut, long, counts

    def _shorten(self, text: str, max_tokens: int) -> tuple[str, int]:
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        keep = max_tokens - self._special
        while keep > 0:
            part = text[offsets[-keep][0] :] if self._side == "left" else text[: offsets[keep - 1][1]]
            (count,) = self.count([part])
            if count <= max_tokens:
                return part, count
            keep -= count - max_tokens  # a cut within one letter's tokens, or unigrams that fall otherwise
        return "", self._special


def find_tokenizer(card: ModelCard, tokenizer: Any = None) -> TokenCutter | None:
    """Return a cutter for the model, or None where its tokenizer is not on this machine; the network is never used.

    Args:
        card: the model; its folder, or else the hub's cache at its pinned revision, is looked into.
        tokenizer: a ``tokenizer.json``, its folder, or a ``tokenizers.Tokenizer`` instead.

    Raises:
        ConfigError: ``tokenizer`` is given and cannot be read.
    """
    if hasattr(tokenizer, "encode_batch_fast"):
        return TokenCutter(_copied(tokenizer))
    path = _given(tokenizer) if tokenizer is not None else _on_this_machine(card)
    if path is None:
        return None
    try:
        return TokenCutter(*open_tokenizer(path))
    except MissingExtraError as error:
        if tokenizer is None:
            return None
        raise ConfigError("tokenizer= needs the package tokenizers: pip install tokenizers") from error
    except ModelLoadError as error:
        raise ConfigError(str(error)) from error


def _copied(tokenizer: Any) -> Any:
    twin = type(tokenizer).from_str(tokenizer.to_str())
    twin.no_padding()
    twin.no_truncation()
    return twin


def _given(tokenizer: Any) -> Path:
    try:
        path = Path(tokenizer).expanduser()
    except TypeError:
        kind = type(tokenizer).__name__
        raise ConfigError(f"tokenizer must be a tokenizer.json, its folder or a Tokenizer, not {kind}") from None
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
