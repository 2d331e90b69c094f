"""``bge serve``: serve a model over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..core.reranker import Reranker
from ..environment import variable
from ..errors import ConfigError, MissingKeyError
from ..keys import keys_from
from ..load import load_encoder, load_reranker
from ..options import RERANKER_OPTIONS
from .options import add_encoder_arguments, encoder_options, require_packages_of

_OF_THE_HOST = {
    "provider": "a rerank provider in the catalogue",
    "base_url": "URL of a rerank server (default: run the reranker on this machine)",
    "dialect": RERANKER_OPTIONS["dialect"].help,
    "wire_model": RERANKER_OPTIONS["wire_model"].help,
    "verify": "first-use: compare published scores before the first request",
}
_SHARED = (
    "allow_http", "cache", "device", "devices", "max_concurrency", "max_retries", "precision", "read_timeout",
    "timeout", "truncate", "trust_remote_code",
)  # fmt: skip
"""Options of the command that hold for the encoder and for the reranker."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge serve``."""
    parser.add_argument(
        "--host",
        default=variable("BGE_SERVE_HOST") or "127.0.0.1",
        help="address to listen on (default: BGE_SERVE_HOST, or loopback only)",
    )
    # argparse checks a default that is a string as it checks an argument.
    parser.add_argument(
        "--port",
        type=int,
        default=variable("BGE_SERVE_PORT") or "7860",
        help="port to listen on, 0 for any free one (default: BGE_SERVE_PORT, or 7860)",
    )
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--api-key-env", metavar="VARIABLE", help="variable with this server's keys, separated by commas")
    keys.add_argument(
        "--api-key-file", metavar="FILE", help="file with this server's keys, one per line; SIGHUP reads it again"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, each with a copy of the model (default: 1)"
    )
    parser.add_argument(
        "--root-path", type=str, default="", metavar="PATH", help="prefix behind a reverse proxy, such as /ml/bge"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="text or JSON lines (default: text)"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="debug also logs probes, warning only failures (default: info)",
    )
    origins = "origin of a web page that may call this server (repeatable)"
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help=origins)
    parser.add_argument(
        "--provider-key-env", metavar="VARIABLE", help="variable with the provider's key, instead of --api-key"
    )
    parser.add_argument("--provider-key-file", metavar="FILE", help="file with the provider's key")
    add_encoder_arguments(parser)
    _add_reranker_arguments(parser.add_argument_group("the reranker"))


def _add_reranker_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--reranker", metavar="MODEL", help="also serve a reranker at /rerank: a name or a folder")
    for name, about in _OF_THE_HOST.items():
        group.add_argument(f"--reranker-{name.replace('_', '-')}", metavar="TEXT", help=about)
    group.add_argument("--reranker-key-env", metavar="VARIABLE", help="variable with the reranker provider's key")
    group.add_argument("--reranker-key-file", metavar="FILE", help="file with the reranker provider's key")


def run(parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from .. import server

    require_packages_of(parsed, {"server": ("fastapi", "uvicorn", "prometheus_client")}, "bge serve")
    options = encoder_options(parsed)
    if parsed.api_key is not None:
        advice = "set the provider's variable, or use --provider-key-env or --provider-key-file"
        print(f"bge: --api-key is visible in the list of processes: {advice}", file=sys.stderr)
    if provider_keys := _keys(parsed.provider_key_env, parsed.provider_key_file):
        options["api_key"] = provider_keys[0]
    server.serve(
        partial(load_encoder, parsed.model, **options),
        host=parsed.host,
        port=parsed.port,
        api_keys=_own_keys(parsed),
        workers=parsed.workers,
        cors_origins=parsed.cors_origin,
        model_names=[parsed.model] if parsed.model else [],
        reranker=reranker_to_serve(parsed),
        root_path=parsed.root_path,
        log_format=parsed.log_format,
        log_level=parsed.log_level,
    )
    return 0


def _own_keys(parsed: argparse.Namespace) -> list[str] | Callable[[], list[str]]:
    if parsed.api_key_file is None:
        return keys_from(parsed.api_key_env)
    return partial(_keys, None, parsed.api_key_file)


def reranker_to_serve(parsed: argparse.Namespace) -> Callable[[], Reranker] | None:
    """Return what makes the reranker that the command line names, or None.

    Raises:
        ConfigError: its host is named and it is not.
    """
    own = {name: value for name in _OF_THE_HOST if (value := getattr(parsed, f"reranker_{name}")) is not None}
    if parsed.reranker is None:
        if own:
            raise ConfigError(f"--reranker-{next(iter(own)).replace('_', '-')} needs --reranker MODEL")
        return None
    options = {name: value for name in _SHARED if (value := getattr(parsed, name)) is not None}
    options |= own
    if keys := _keys(parsed.reranker_key_env, parsed.reranker_key_file):
        options["api_key"] = keys[0]
    return partial(load_reranker, parsed.reranker, **options)


def _keys(variable: str | None, file: str | None) -> list[str]:
    """Return the keys of a variable or a file; none where neither is named."""
    if file is None:
        return keys_from(variable)
    try:
        keys = Path(file).read_text("utf-8").replace(",", "\n").split()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the keys in {file!r} cannot be read: {type(error).__name__}") from None
    if not keys:
        raise MissingKeyError(f"{file!r} is empty: put the keys into it, one per line")
    return keys
