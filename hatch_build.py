"""hatchling calls this when it builds: README becomes PyPI's page."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Fills in ``readme``, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set what PyPI shows."""
        root = Path(self.root)
        for_pypi = runpy.run_path(str(root / "scripts" / "pypi_readme.py"))["for_pypi"]
        address = metadata.get("urls", {}).get("Repository", "")
        text = for_pypi((root / "README.md").read_text("utf-8"), address)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
