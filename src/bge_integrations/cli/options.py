"""The keywords of ``load_encoder`` as command-line options, with dashes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, cast

from ..core.checks import is_encodable
from ..core.encoder import Encoder
from ..core.reranker import Reranker
from ..environment import variable
from ..errors import ConfigError
from ..extras import require_all
from ..load import load_encoder, load_reranker
from ..options import OPTIONS, RERANKER_OPTIONS, Option, Options, RerankerOptions
from ..wrappers.progress import ProgressEncoder


def add_encoder_arguments(parser: argparse.ArgumentParser, *, model: str | None = None, default: str = "small") -> None:
    """Add ``--model`` and every keyword of ``load_encoder``.

    Args:
        parser: of the command.
        model: the default model.
        default: what help calls the default, where ``model`` is None.
    """
    group = parser.add_argument_group("the encoder")
    group.add_argument("--model", default=model, help=f"model name or folder (default: {model or default})")
    _add_options(group, OPTIONS)


def add_reranker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and every keyword of ``load_reranker``."""
    group = parser.add_argument_group("the reranker")
    group.add_argument("--model", help="model name or folder (default: bge-reranker-v2-m3)")
    _add_options(group, RERANKER_OPTIONS)


def _add_options(group: argparse._ArgumentGroup, table: Mapping[str, Option]) -> None:
    for option in table.values():
        if option.flag:
            group.add_argument("--" + option.name.replace("_", "-"), dest=option.name, **_argument(option))


def _argument(option: Option) -> dict[str, Any]:
    about: dict[str, Any] = {"help": option.help}
    if option.choices:
        return {**about, "choices": option.choices}
    if option.type is bool:
        return {**about, "action": "store_true", "default": None}
    if option.type in (int, float):
        return {**about, "type": option.type, "metavar": "N"}
    if option.type == "instruction":
        return {**about, "type": str, "metavar": "TEXT"}
    if option.type == "weights":
        return {**about, "type": float, "nargs": 3, "metavar": ("DENSE", "SPARSE", "MULTIVECTOR")}
    if option.type == "names":
        return {**about, "type": lambda text: text.split(","), "metavar": "A,B"}
    if option.type == "headers":
        return {**about, "action": "append", "metavar": "NAME:VALUE"}
    return {**about, "metavar": "TEXT"}


def encoder_options(parsed: argparse.Namespace) -> Options:
    """Return the keywords that the command line has.

    Raises:
        ConfigError: a header without a name.
    """
    return cast("Options", _options(parsed, OPTIONS))


def make_reranker(parsed: argparse.Namespace) -> Reranker:
    """Return the reranker that the command line names."""
    return load_reranker(parsed.model, **cast("RerankerOptions", _options(parsed, RERANKER_OPTIONS)))


def _options(parsed: argparse.Namespace, table: Mapping[str, Option]) -> dict[str, Any]:
    flags = (name for name, option in table.items() if option.flag)
    given: dict[str, Any] = {name: value for name in flags if (value := vars(parsed).get(name)) is not None}
    if given.get("cache") in ("True", "true"):
        given["cache"] = True
    if "headers" in given:
        pairs = [header.partition(":") for header in given["headers"]]
        if not all(colon for _, colon, _ in pairs):
            raise ConfigError("--headers takes NAME:VALUE")
        given["headers"] = {name.strip(): value.strip() for name, _, value in pairs}
    return given


def make_encoder(parsed: argparse.Namespace, **extra: Any) -> Encoder:
    """Return the encoder that the command line names."""
    options = cast("Options", {**encoder_options(parsed), **extra})
    return load_encoder(parsed.model, **options)


def require_packages_of(parsed: argparse.Namespace, needs: Mapping[str, Sequence[str]], purpose: str) -> None:
    """Name all that is missing at once: what the command needs, and a model on this machine.

    Raises:
        MissingExtraError: something is missing.
    """
    hosted = parsed.provider or parsed.base_url or variable("BGE_PROVIDER") or variable("BGE_BASE_URL")
    here = parsed.provider == "local" or not hosted
    missing = here and not any(find_spec(name) for name in ("torch", "onnxruntime"))
    require_all({**needs, **({"local": ("torch",)} if missing else {})}, purpose=purpose)


def standard_input() -> Iterator[str]:
    """Yield the lines of standard input, with their newlines.

    Raises:
        ConfigError: a line is not text; names it.
    """
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "surrogateescape":
        sys.stdin.reconfigure(errors="surrogateescape")  # a broken line is named below, whatever the locale
    for number, line in enumerate(sys.stdin, 1):
        if "\0" in line or not is_encodable(line):
            encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
            raise ConfigError(f"standard input, line {number}: not text in {encoding.upper()}")
        yield line


def with_bar(encoder: Encoder) -> Encoder:
    """Return the encoder with a bar for each call, on a terminal; gone when the call is."""
    return ProgressEncoder(encoder, show=True, leave=False) if sys.stderr.isatty() else encoder
