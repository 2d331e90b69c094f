"""An extension of mkdocstrings, for what it shows otherwise than it is meant."""

from __future__ import annotations

import re
from typing import Any

import griffe

_LITERAL = re.compile(r"^( *)::\n\n((?:\1.*\n|\n)+)", re.MULTILINE)
"""A literal block of reStructuredText, which Markdown writes as a fence."""


class Docstrings(griffe.Extension):
    """Shows ``Example:`` as code, which it does only for ``Examples:``, and leaves out the tree of errors.

    That page draws the tree itself, where its lines stay lines.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.path == "bge_integrations.errors":
            obj.docstring = None
        elif obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = _LITERAL.sub(lambda found: f"{found[1]}```python\n{found[2].rstrip()}\n{found[1]}```\n", text + "\n")
            obj.docstring.value = text.replace("  # doctest: +SKIP", "")
