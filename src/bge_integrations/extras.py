"""Optional packages: imported where they are needed, and the one place that says how to install them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import MissingExtraError

__all__ = ["install_line", "require", "require_all", "require_packages"]


def require(module: str, *, extra: str = "", install: str = "", purpose: str = "this") -> Any:
    """Import a package and return the module.

    Args:
        module: what is imported, such as ``"pyarrow.parquet"``.
        extra: of this package, which brings it.
        install: packages to install instead, for what belongs to no extra.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed, or it is and cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        line = f"pip install {install}" if install else install_line(extra)
        missing = error.name is None or error.name.partition(".")[0] == package
        reason = "" if missing else f", which cannot be imported ({error})"
        raise MissingExtraError(f"{purpose} needs {package}{reason}: {line}") from error


def require_all(modules: Mapping[str, Sequence[str]], *, purpose: str = "this") -> None:
    """Check that packages of several extras are there, so that one message names all that is missing.

    Args:
        modules: top-level packages by the extra that brings them.
        purpose: what needs them, for the message.

    Raises:
        MissingExtraError: names every missing package and one line that installs all of them.
    """
    missing = {extra: [name for name in names if not _installed(name)] for extra, names in modules.items()}
    extras = [extra for extra, names in missing.items() if names]
    if extras:
        packages = ", ".join(name for extra in extras for name in missing[extra])
        raise MissingExtraError(f"{purpose} needs {packages}: {install_line(*extras)}")


def require_packages(packages: Mapping[str, str], *, purpose: str) -> None:
    """Check that packages which belong to no extra are there, so that one message names all that is missing.

    Args:
        packages: what pip calls each, by the name it is imported by.
        purpose: what needs them, for the message.

    Raises:
        MissingExtraError: names every missing package and one line that installs all of them.
    """
    missing = [name for name in packages if not _installed(name)]
    if missing:
        line = " ".join(packages[name] for name in missing)
        raise MissingExtraError(f"{purpose} needs {', '.join(missing)}: pip install {line}")


def install_line(*extras: str) -> str:
    """Return the command that installs extras of this package."""
    return f'pip install "bge-integrations[{",".join(dict.fromkeys(extras))}]"'


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: sys.modules holds None for it
        return False
