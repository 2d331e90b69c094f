"""The ``bge`` command: parsing and printing only."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from ..errors import BGEError

_COMMANDS = {
    "demo": "see it work on a folder of text: two frameworks, local and remote",
    "models": "list the models, the instruction each wants, and who serves it",
    "serve": "serve a model over HTTP, with a page to try it on",
    "verify": "tell whether a host really serves a model, in its vector space",
    "embed": "embed the rows of files into shards; a killed job goes on where it was",
    "search": "ask the shards of a folder, exactly",
    "load": "put the shards of a folder into a vector store, with their stamp",
    "cache": "look at the cache of vectors, shrink or empty it",
    "export": "write an ONNX file from a torch model",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the answer is no, 2 wrong usage or a clear error."""
    parser = argparse.ArgumentParser(prog="bge", description="BAAI's BGE embeddings, on this machine or at a host.")
    parser.add_argument("--version", action="version", version=version("bge-integrations"))
    parser.add_argument("--verbose", action="store_true", help="log what is done, and show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        module = import_module(f".{name}", __package__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING, format="%(name)s: %(message)s")
    warnings.showwarning = _show_warning
    try:
        return int(parsed.run(parsed))
    except BGEError as error:
        if parsed.verbose:
            raise
        print(f"bge: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("bge: stopped", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"bge: {message}", file=sys.stderr)
