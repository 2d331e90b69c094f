"""README for PyPI, whose page has no folder beside it; hatch_build.py uses this.

Links and pictures that are relative become absolute, from the one place that names the repository: ``Repository`` in
``[project.urls]``. While that is empty, links become plain words and pictures are left out.
"""

from __future__ import annotations

import re

_PICTURE = re.compile(r"<picture>.*?</picture>\n?", re.DOTALL)
_FILE = re.compile(r'\b(src|srcset)="(?!https?:)([^"]+)"')
_LINK = re.compile(r"(!?)\[((?:!\[[^]]*\]\([^)]*\)|[^][])*)\]\(([^)\s]+)\)")


def for_pypi(text: str, repository: str) -> str:
    """Return README with no relative link."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)  # not in code
    parts[::2] = [_outside_code(part, repository.rstrip("/")) for part in parts[::2]]
    return "".join(parts)


def _outside_code(text: str, repository: str) -> str:
    text = _LINK.sub(lambda found: _absolute(found, repository), text)
    return _FILE.sub(rf'\1="{_raw(repository)}\2"', text) if repository else _PICTURE.sub("", text)


def _absolute(found: re.Match[str], repository: str) -> str:
    picture, label, target = found.groups()
    label = _LINK.sub(lambda inner: _absolute(inner, repository), label)
    if re.match(r"https?:|#|mailto:", target):
        return f"{picture}[{label}]({target})"
    if not repository:
        return "" if picture else label
    return f"{picture}[{label}]({_raw(repository) if picture else repository + '/blob/main/'}{target})"


def _raw(repository: str) -> str:
    return f"{repository.rstrip('/')}/raw/main/"
