"""README's figures are those that the benchmarks wrote."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_readme_shows_what_was_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import readme_speed

    text = (ROOT / "README.md").read_text("utf-8")
    assert readme_speed.renewed(text, ROOT / "benchmarks" / "results") == text
