"""The ``bge`` command: parsing and printing only."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from ..errors import BGEError
from .parser import Parser

_COMMANDS = {
    "demo": "index and search a folder of text: both frameworks, local and remote",
    "models": "list the models, their query instructions, and who serves them",
    "serve": "serve a model over HTTP, with a web page to try it",
    "verify": "check whether an endpoint or a store holds a model's own vectors",
    "embed": "embed files into shards (resumable)",
    "search": "exact nearest-neighbour search over embedded shards",
    "dups": "find near-duplicate rows in shards",
    "eval": "compare models, providers, search methods and rerankers on labelled questions",
    "quantise": "quantise the vectors of shards to int8 or binary",
    "rerank": "rank passages by how well they answer a question",
    "upload": "upload shards into a vector store, and stamp it with their model",
    "cache": "inspect, prune or clear the cache of vectors",
    "export": "export a model to ONNX",
    "completion": "print a shell completion script (bash, zsh, fish or tcsh)",
}

_ALIASES = {"upload": ["load"], "quantise": ["quantize"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: a finding, such as a host that serves another model; 2: it could not be done, said in one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 shows escapes instead of ending the command
            stream.reconfigure(errors="backslashreplace")
    verbose = False
    try:
        parsed = _parse(arguments)
        verbose = parsed.verbose
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
        warnings.showwarning = _show_warning
        code = int(parsed.run(parsed))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _forget_output()
        return 0
    except KeyboardInterrupt:
        print("bge: stopped", file=sys.stderr)
        return 130
    except (BGEError, OSError, UnicodeError) as error:
        if verbose:
            raise
        print(f"bge: {_one_line(error)}", file=sys.stderr)
        _forget_output()
        return 2
    return code


def make_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="bge", description="BAAI's BGE embeddings and rerankers, local or remote.")
    parser.add_argument("--version", action="version", version=version("bge-integrations"))
    parser.add_argument("--verbose", action="store_true", help="log what is done, and show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, aliases=_ALIASES.get(name, []))
        module = import_module(f".{name}", __package__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return make_parser().parse_args(_plain(sys.argv[1:] if arguments is None else arguments))


def _plain(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``help`` and ``version``, which people type as commands, as options."""
    first, *rest = [*arguments] or ["--help"]
    if first == "help":
        return [*rest[:1], "--help"]
    return ["--version"] if first == "version" else [first, *rest]


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, BGEError) and error.strerror:
        named = f" {error.filename!r}" if error.filename is not None else ""
        return f"{error.strerror}{named}"
    return " ".join(str(error).split()) or type(error).__name__


def _forget_output() -> None:
    """Send output to the null device if it cannot be flushed: Python tries again at exit, with a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"bge: {_one_line(message) if isinstance(message, Warning) else message}", file=sys.stderr)
