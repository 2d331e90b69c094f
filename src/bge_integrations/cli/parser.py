"""argparse that says what was wrong in one line, with what may have been meant."""

from __future__ import annotations

import argparse
import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

__all__ = ["Parser"]


def _not_blank(text: str) -> str:
    """Return a word of the command line; a blank one is most often an unset variable.

    Raises:
        argparse.ArgumentTypeError: it is blank.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: is a variable not set?")
    return text


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; subparsers are of this class too.

    A blank value is refused, except for arguments with ``type=str``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", None, _not_blank)  # what argparse calls for arguments without a type

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and end with 2."""
        sys.stderr.write(f"{self.prog}: {message}{self._meant(message)} (see {self.prog} --help)\n")
        sys.exit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and have an unknown option be reported by the command that it was meant for."""
        parsed, rest = super().parse_known_args(args, namespace)
        unknown = [argument for argument in rest if argument.startswith("-")]
        if unknown:
            self.error(f"no option {unknown[0].partition('=')[0]}")
        return parsed, rest

    def _meant(self, message: str) -> str:
        typed = re.search(r"no option (\S+)|invalid choice: '([^']+)'", message)
        if typed is None:
            return ""
        word = typed[1] or typed[2]
        near = get_close_matches(word, self._option_string_actions if typed[1] else self._commands(), n=1)
        return f"; did you mean {near[0]}?" if near else ""

    def _commands(self) -> list[str]:
        return [str(name) for action in self._actions for name in action.choices or ()]
