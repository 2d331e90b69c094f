"""Draw docs/img/demo.svg: what `bge demo` prints, as it is.

python scripts/demo_image.py
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).parent.parent
ARGUMENTS = (
    "docs/explanation",
    *("--ask", "why can vectors of two hosts be compared"),
    *("--ask", "how long does a call wait"),
)


def main() -> None:
    command = [str(Path(sys.executable).parent / "bge"), "demo", *ARGUMENTS]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=max(map(len, printed.splitlines())) + 1, file=nowhere)
        console.print(Text(f"$ bge demo {shlex.join(ARGUMENTS)}\n", "bold"))
        console.print(Text(printed.rstrip()), soft_wrap=True)
    drawn = console.export_svg(title="bge demo", theme=DIMMED_MONOKAI)
    # rich names a font on the web; an image should ask nobody.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    (ROOT / "docs" / "img" / "demo.svg").write_text(drawn, "utf-8")


if __name__ == "__main__":
    main()
