"""Reads a tokenizer from a model's files as transformers would make it, without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..catalog.local_folder import read_json
from ..catalog.weights import is_lfs_pointer
from ..errors import ModelLoadError
from ..extras import require

__all__ = ["read_tokenizer"]


def read_tokenizer(path: Path) -> tuple[Any, str]:
    """Return the ``tokenizers.Tokenizer`` of a model's folder or of a ``tokenizer.json``, and which end a cut loses.

    Raises:
        MissingExtraError: tokenizers is not installed.
        ModelLoadError: there is none, or it cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    tokenizer = _read(folder / "tokenizer.json" if path.is_dir() else path)
    config = _object(folder / "tokenizer_config.json")
    _normalize_as_configured(tokenizer, config)
    if _object(folder / "sentence_bert_config.json").get("do_lower_case"):
        _lower(tokenizer)
    return tokenizer, str(config.get("truncation_side", "right"))


def _read(file: Path) -> Any:
    tokenizers = require("tokenizers", extra="local", purpose="a local model")
    if not file.is_file() and (file.parent / "vocab.txt").is_file():
        return _from_vocabulary(file.parent)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the Rust side raises bare Exception, and panics at some files
        if not file.is_file():
            raise ModelLoadError(
                f"{str(file.parent)!r} has no tokenizer.json: save it with transformers' AutoTokenizer"
            ) from None
        hint = (
            "it is a git-lfs pointer, run `git lfs pull` there" if is_lfs_pointer(file) else f"{error}: fetch it again"
        )
        raise ModelLoadError(f"{str(file)!r} cannot be read: {hint}") from None


def _from_vocabulary(folder: Path) -> Any:
    """Return the WordPiece tokenizer of a ``vocab.txt``, as transformers makes it for a BERT."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    config = _object(folder / "tokenizer_config.json")
    lower = bool(config.get("do_lower_case", True))
    accents = config.get("strip_accents")
    try:
        vocabulary = models.WordPiece.read_file(str(folder / "vocab.txt"))
        special = {name: vocabulary[name] for name in ("[CLS]", "[SEP]", "[UNK]")}
    except Exception as error:  # noqa: BLE001 - as above
        raise ModelLoadError(f"{str(folder / 'vocab.txt')!r} is not a BERT vocabulary: {error}") from None
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=accents if isinstance(accents, bool) else None,
        lowercase=lower,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, special[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocabulary]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer


def _normalize_as_configured(tokenizer: Any, config: Mapping[str, Any]) -> None:
    """Let a BERT's tokenizer_config.json decide over its tokenizer.json, as transformers does."""
    if type(tokenizer.normalizer).__name__ != "BertNormalizer":
        return
    if not str(config.get("tokenizer_class", "")).startswith("BertTokenizer"):
        return
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    for key, name in names.items():
        value = config.get(key)
        if isinstance(value, bool) or (key in config and key == "strip_accents" and value is None):
            setattr(tokenizer.normalizer, name, value)


def _lower(tokenizer: Any) -> None:
    """Lower-case as sentence-transformers does where a model's configuration asks for it."""
    from tokenizers.normalizers import Lowercase, Sequence

    old = tokenizer.normalizer
    if old is None:
        tokenizer.normalizer = Lowercase()
    elif '"lowercase":true' not in tokenizer.to_str() and '"Lowercase"' not in tokenizer.to_str():
        tokenizer.normalizer = Sequence([Lowercase(), old])


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    return data if isinstance(data, dict) else {}
