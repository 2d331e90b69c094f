"""An extension of mkdocstrings, for what it shows otherwise than it is meant."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Shows ``Example:`` as code, which it does only for ``Examples:``, and leaves out the tree of errors.

    That page draws the tree itself, where its lines stay lines.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.path == "bge_integrations.errors":
            obj.docstring = None
        elif obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"^ *::\n\n", "", text, flags=re.MULTILINE)
            obj.docstring.value = text.replace("  # doctest: +SKIP", "")
