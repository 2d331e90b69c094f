"""Draw the README's plots with the notebooks' own code: docs/img/instruction.png and docs/img/map.png.

python scripts/docs_plots.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "img"


def run(name: str) -> dict[str, Any]:
    """Run a notebook's cells, without those that open a browser, and return its names."""
    cells = json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "figure.show()" not in source:
            exec(compile(source.replace("plt.show()", ""), name, "exec"), names)
    return names


def instruction(plt: Any) -> None:
    names = run("03_what_the_instruction_does.ipynb")
    figure, axis = plt.subplots(figsize=(7, 2.9), layout="constrained")
    names["bars"](axis, 0)
    label = "nDCG@10 of the demo model, which exaggerates the gap on purpose\n1,000 questions, 95 % intervals"
    axis.set(xlabel=label, xticks=[0, 0.25, 0.5, 0.75, 1])
    figure.savefig(IMAGES / "instruction.png", dpi=150)


def corpus(plt: Any) -> None:
    names = run("06_a_map_of_your_corpus.ipynb")
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    names["draw"](axis, "", names["maps"]["UMAP"])
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    figure.savefig(IMAGES / "map.png", dpi=150)


def main() -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    IMAGES.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT / "notebooks")
    instruction(plt)
    corpus(plt)


if __name__ == "__main__":
    main()
