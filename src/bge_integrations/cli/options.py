"""The keywords of ``load_encoder`` as command-line options, with dashes."""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

from ..core.encoder import Encoder
from ..load import Options, load_encoder
from ..wrappers.progress import ProgressEncoder

_TEXT = {
    "provider": "a host of the catalogue, or 'local'",
    "base_url": "an OpenAI-compatible endpoint without /embeddings, or a Space",
    "api_key": "the host's key; better set its variable in the environment",
    "wire_model": "what is sent as 'model' when it differs",
    "query_instruction": "instead of the model's own; '' for none",
    "cache": "SQLite file that keeps vectors",
    "device": "cuda, mps or cpu",
    "backend": "auto, torch, onnx or sentence-transformers",
    "precision": "float32, bfloat16, float16 or int8 (another space)",
    "tokenizer": "tokenizer.json or its folder, for counting tokens",
}
_NUMBERS: dict[str, type] = {
    "timeout": float,
    "max_retries": int,
    "max_concurrency": int,
    "max_inputs": int,
    "requests_per_minute": float,
    "tokens_per_minute": float,
}
_CHOICES = {"truncate": ("warn", "error"), "blank": ("error", "keep"), "verify": ("first-use",)}
_FLAGS = {
    "trust_remote_code": "run code that the model's repository carries",
    "allow_withdrawn": "ask a host for a model that it has withdrawn",
}


def add_encoder_arguments(parser: argparse.ArgumentParser, *, model: str | None = None, told: str = "small") -> None:
    """Add ``--model``, whose default's name is ``told`` where it is None, and every keyword of ``load_encoder``."""
    group = parser.add_argument_group("the encoder")
    group.add_argument("--model", default=model, help=f"name of the catalogue or folder (default: {model or told})")
    for name, text in _TEXT.items():
        group.add_argument(_flag(name), dest=name, metavar="TEXT", help=text)
    for name, kind in _NUMBERS.items():
        group.add_argument(_flag(name), dest=name, type=kind, metavar="N")
    for name, choices in _CHOICES.items():
        group.add_argument(_flag(name), dest=name, choices=choices)
    for name, text in _FLAGS.items():
        group.add_argument(_flag(name), dest=name, action="store_true", default=None, help=text)
    group.add_argument("--accept-space", dest="accept_space", choices=("mean", "cls", "last token"))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def encoder_options(parsed: argparse.Namespace) -> Options:
    """Return the keywords that were given."""
    names = (*_TEXT, *_NUMBERS, *_CHOICES, *_FLAGS, "accept_space")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(parsed, name)) is not None}
    return cast("Options", given)


def make_encoder(parsed: argparse.Namespace, **extra: Any) -> Encoder:
    """Return the encoder that the command line names."""
    options = cast("Options", {**encoder_options(parsed), **extra})
    return load_encoder(parsed.model, **options)


def with_bar(encoder: Encoder) -> Encoder:
    """Return the encoder with a bar for each call, on a terminal; gone when the call is."""
    return ProgressEncoder(encoder, show=True, leave=False) if sys.stderr.isatty() else encoder
