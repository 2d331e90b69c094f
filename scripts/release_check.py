"""Say what stands between this tree and a release; exits with 1 where something does.

python scripts/release_check.py [vX.Y.Z]
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(tag: str | None) -> list[str]:
    """Return what is missing, a line each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    version = project["version"]
    found = []
    if missing := {"Repository", "Documentation"} - set(project.get("urls", {})):
        found.append(f"pyproject.toml: [project.urls] does not name {' and '.join(sorted(missing))}")
    if tag and tag != f"v{version}":
        found.append(f"the tag is {tag}, pyproject.toml says {version}")
    if f"version: {version}" not in (ROOT / "CITATION.cff").read_text("utf-8"):
        found.append(f"CITATION.cff does not say version: {version}")
    if not re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        found.append(f"CHANGELOG.md has no section [{version}]")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if "github/REPOSITORY/" in path.read_text("utf-8"):
            found.append(f"notebooks/{path.name}: the Colab badge names REPOSITORY, not owner/name of the repository")
    return found


if __name__ == "__main__":
    listed = problems(sys.argv[1] if len(sys.argv) > 1 else None)
    print("\n".join(listed) or "ready")
    raise SystemExit(bool(listed))
