"""``bge completion``: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..extras import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge completion``."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"], help="shell to print the script for")


def run(parsed: argparse.Namespace) -> int:
    """Print the script."""
    from . import make_parser

    if parsed.shell == "fish":
        print("\n".join(_fish(make_parser())))
        return 0
    shtab = require("shtab", extra="cli", purpose="bge completion")
    print(shtab.complete(make_parser(), shell=parsed.shell))
    return 0


def _fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield lines of ``complete`` for the fish shell, which shtab does not know."""
    commands = next(action for action in _actions(parser) if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    helps = {action.dest: action.help or "" for action in commands._get_subactions()}  # noqa: SLF001
    for name, command in commands.choices.items():
        said = helps.get(name) or command.description or ""
        yield f"complete -c bge -f -n __fish_use_subcommand -a {name} -d {_quoted(said)}"
        seen = f"complete -c bge -n '__fish_seen_subcommand_from {name}'"
        for action in _actions(command):
            words = " ".join(str(choice).replace(" ", "\\ ") for choice in action.choices or ())
            choices = f" -f -a {_quoted(words)}" if words else ""
            flags = action.option_strings
            options = "".join(f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in flags)
            needs_value = " -r" if options and action.nargs != 0 else ""
            if options or choices:
                said = (action.help or "") % {**vars(action), "prog": command.prog}
                yield f"{seen}{options}{needs_value}{choices} -d {_quoted(said)}"


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001 - argparse has no public list of them


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
