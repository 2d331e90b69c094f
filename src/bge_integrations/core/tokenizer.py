"""A model's own tokenizer, without transformers: token ids, token counts, and texts truncated by tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import ModelCard
from ..environment import variable
from ..errors import BGEError, ConfigError, InputError, MissingExtraError, ModelLoadError, TextError
from .tokenizer_files import read_tokenizer

__all__ = ["TextTokenizer", "Tokens", "find_tokenizer"]

_SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]")
_SLICE_TEXTS = 1024
_SLICE_CHARACTERS = 1_000_000  # an encoding is a hundred times larger than its text
_HUGE = 64  # characters per token that the model reads; of a longer text only an end is tokenised
_ENOUGH = 16  # characters per token of that end; English has 4 to 5


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, truncated to what the model reads.

    Attributes:
        items: what a backend's ``forward`` takes, one for each text.
        lengths: tokens of each, special tokens included.
        truncated: positions of the texts that were longer.
    """

    items: list[Any]
    lengths: NDArray[np.int64]
    truncated: list[int]


class TextTokenizer:
    """A model's tokenizer; safe from any thread.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, which is changed: no padding, and no truncation but at ``max_tokens``.
        side: which end of a text is lost.
        max_tokens: how many tokens ``tokenize`` keeps; all when None.
    """

    def __init__(self, tokenizer: Any, *, side: str = "right", max_tokens: int | None = None) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.max_tokens = max_tokens
        self._tokenizer, self._side = tokenizer, "left" if side == "left" else "right"
        self._special: int = tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_tokens is not None:
            if max_tokens <= self._special:
                raise ModelLoadError(
                    f"the model reads only {max_tokens} tokens, too few for a text: is its configuration right?"
                )
            tokenizer.enable_truncation(max_tokens, direction=self._side)

    @property
    def library(self) -> Any:
        """The ``tokenizers.Tokenizer``."""
        return self._tokenizer

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no part of any text; bge-m3's sparse output leaves them out."""
        ids = map(self._tokenizer.token_to_id, _SPECIAL)
        return frozenset(number for number in ids if number is not None)

    def token(self, number: int) -> str:
        """Return the token of an id, as the tokenizer writes it (``▁pump``, ``##ing``).

        Raises:
            InputError: there is no such id.
        """
        try:
            token = self._tokenizer.id_to_token(number)
        except (TypeError, OverflowError):
            token = None
        if token is None:
            raise InputError(
                f"{number!r} is not a token id of this model: ids are whole numbers, or strings where they "
                "come from JSON"
            )
        return str(token)

    @property
    def side(self) -> str:
        """Which end of a text is lost."""
        return self._side

    @classmethod
    def read(cls, path: Path, max_tokens: int | None = None) -> TextTokenizer:
        """Return the tokenizer of a model's folder or of a ``tokenizer.json``.

        Raises:
            MissingExtraError: tokenizers is not installed.
            ModelLoadError: there is none, or it cannot be read.
        """
        tokenizer, side = read_tokenizer(path)
        return cls(tokenizer, side=side, max_tokens=max_tokens)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the token ids of each text as int32 arrays, special tokens included.

        Raises:
            TextError: the tokenizer fails at a text.
        """
        most = self.max_tokens
        if most is not None and max(map(len, texts), default=0) > _HUGE * most:
            texts = [self._end_of(text, most) if len(text) > _HUGE * most else text for text in texts]
        encodings = self._encode(texts)
        items = [np.array(encoding.ids, np.int32) for encoding in encodings]
        lengths = np.fromiter(map(len, items), np.int64, len(items))
        return Tokens(items, lengths, [i for i, encoding in enumerate(encodings) if encoding.overflowing])

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included, before truncation.

        Raises:
            TextError: the tokenizer fails at a text.
        """
        counts: list[int] = []
        for part in _slices(texts):
            try:
                counts += [self._length(encoding) for encoding in self._encode(part)]
            except TextError as error:
                raise error.at(range(len(counts), len(counts) + len(part))) from None
        return counts

    def _length(self, encoding: Any) -> int:
        # Each overflowing part gets special tokens of its own.
        return len(encoding.ids) + sum(len(part.ids) - self._special for part in encoding.overflowing)

    def cut(self, texts: list[str], max_tokens: int) -> tuple[list[str], list[int], list[int]]:
        """Truncate texts that are sent as text.

        A cut falls between two tokens, so that reading the shorter text again gives the ids that a model that truncates
        ids would read. For WordPiece (bge-*-en, bge-*-zh) this is exact, since its longest-match rule never looks back;
        for XLM-R's unigrams (bge-m3) the last tokens may differ.

        Returns:
            The texts (the same list where none was longer), the positions of those that were longer than
            ``max_tokens``, and a token count for each, exact where the text might have been too long.

        Raises:
            TextError: the tokenizer fails at a text.
        """
        # A token stands for a character or more: a short text need not be counted exactly.
        counts = [len(text) // 4 + self._special + 1 for text in texts]
        # 8 leaves room for special tokens. Other letters than ASCII may be several tokens each.
        unsure = [i for i, text in enumerate(texts) if not text.isascii() or len(text) > max_tokens - 8]
        try:
            ends = [self._end_of(texts[i], max_tokens) for i in unsure]
            for i, count in zip(unsure, self.count(ends), strict=True):
                counts[i] = count
        except TextError as error:
            raise error.at(unsure) from None
        long = [(i, end) for i, end in zip(unsure, ends, strict=True) if counts[i] > max_tokens]
        shortened = list(texts) if long else texts
        for i, end in long:
            shortened[i], counts[i] = self._shorten(end, max_tokens)
        return shortened, [i for i, _ in long], counts

    def _shorten(self, text: str, max_tokens: int) -> tuple[str, int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = [span for part in _in_order(encoding, self._side) for span in part.offsets]
        keep = max_tokens - self._special
        while keep > 0:
            part = text[offsets[-keep][0] :] if self._side == "left" else text[: offsets[keep - 1][1]]
            (count,) = self.count([part])
            if count <= max_tokens:
                return part, count
            keep -= count - max_tokens  # a cut within one letter's tokens, or unigrams that fall otherwise
        return "", self._special

    def _end_of(self, text: str, max_tokens: int) -> str:
        """Return the end of a huge text that truncation keeps, with the same ``max_tokens`` tokens; else the text.

        So a megabyte costs no more than what the model reads of it. Words (what the pre-tokenizer makes) are tokenised
        each by itself; only those at the cut may read otherwise: the word that is cut, a neighbour that a pattern's
        look-ahead reaches, and pieces of an added token. A tokenizer without words reads the whole text.
        """
        if len(text) <= _HUGE * max_tokens:
            return text
        size = _ENOUGH * max_tokens
        while size < len(text):
            end = text[:size] if self._side == "right" else text[-size:]
            if self._certain(end) >= max_tokens:
                return end
            size *= 4
        return text

    def _certain(self, end: str) -> int:
        """Return how many tokens of an end do not depend on what lies beyond the cut."""
        (encoding,) = self._encode([end], offsets=True)
        parts = [encoding, *encoding.overflowing]
        pairs = [pair for part in parts for pair in zip(part.word_ids, part.offsets, strict=True)]
        spans: list[tuple[int, int]] = [span for word, span in pairs if word is not None]
        words: list[int] = sorted(word for word, _ in pairs if word is not None)
        if not words:
            return 0
        if self._side == "right":
            edge = sum(stop > len(end) - self._longest_added for _, stop in spans)
            return min(bisect_right(words, words[-1] - 2), len(spans) - edge)
        edge = sum(start < self._longest_added for start, _ in spans)
        return min(len(words) - bisect_left(words, words[0] + 2), len(spans) - edge)

    @cached_property
    def _longest_added(self) -> int:
        added = self._tokenizer.get_added_tokens_decoder().values()
        return max((len(token.content) for token in added), default=0)

    def _encode(self, texts: Sequence[str], *, offsets: bool = False, special: bool = True) -> list[Any]:
        """Return encodings.

        Raises:
            TextError: names the texts at which the tokenizer fails.
            BGEError: it fails, but at none of the texts alone.
        """
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            return encode(list(texts), add_special_tokens=special)  # type: ignore[no-any-return]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception
            kind = type(error).__name__
            bad = [i for i, text in enumerate(texts) if not _succeeds(encode, text)]
        # The tokenizer's own words are left out: they may quote the text.
        if not bad:
            raise BGEError(
                f"the tokenizer failed ({kind}) on {len(texts)} texts together, but on none of them alone: call again"
            )
        raise TextError(f"the tokenizer fails on this text ({kind}): remove it", positions=bad)


def _slices(texts: Sequence[str]) -> list[list[str]]:
    slices: list[list[str]] = []
    characters = 0
    for text in texts:
        if not slices or len(slices[-1]) == _SLICE_TEXTS or characters + len(text) > _SLICE_CHARACTERS:
            slices.append([])
            characters = 0
        slices[-1].append(text)
        characters += len(text)
    return slices


def _in_order(encoding: Any, side: str) -> list[Any]:
    parts = [encoding, *encoding.overflowing]
    return parts if side == "right" else parts[::-1]


def _succeeds(encode: Any, text: str) -> bool:
    try:
        encode([text])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - as above
        return False
    return True


def find_tokenizer(card: ModelCard, tokenizer: Any = None) -> TextTokenizer | None:
    """Return a model's tokenizer, or None where it is not on this machine; the network is never used.

    Args:
        card: the model; its folder, or else the hub's cache at its pinned revision, is looked into.
        tokenizer: a ``tokenizer.json``, its folder, or a ``tokenizers.Tokenizer`` instead.

    Raises:
        ConfigError: ``tokenizer`` is given and cannot be read.
    """
    if hasattr(tokenizer, "encode_batch_fast"):
        # A copy: the user's own keeps its padding and truncation.
        return TextTokenizer(type(tokenizer).from_str(tokenizer.to_str()))
    path = _user_file(tokenizer) if tokenizer is not None else _on_this_machine(card)
    if path is None:
        return None
    try:
        return TextTokenizer.read(path)
    except MissingExtraError as error:
        if tokenizer is None:
            return None
        raise ConfigError("tokenizer= needs the package tokenizers: pip install tokenizers") from error
    except ModelLoadError as error:
        raise ConfigError(str(error)) from error


def _user_file(tokenizer: Any) -> Path:
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
        folder = Path(card.folder)
        found = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        return folder if found else None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for cache in (None, variable("SENTENCE_TRANSFORMERS_HOME")):
        found_file = try_to_load_from_cache(card.id, "tokenizer.json", cache_dir=cache, revision=card.revision)
        if isinstance(found_file, str):
            return Path(found_file)
    return None
