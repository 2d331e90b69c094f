"""Run notebooks and store them with outputs that are fit to be kept: no warnings, no widgets, no scripts, no machine.

python scripts/refresh_notebooks.py notebooks/03_what_the_instruction_does.ipynb ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

_KEPT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def kept(output: dict) -> bool:
    """Tell whether readers want an output: not what went to stderr, and not a bar that needs a running kernel."""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return output.get("name") != "stderr" and not widget


def refresh(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    notebook.metadata = nbformat.from_dict(_KEPT)
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "nbmake")}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if kept(output)]
            for output in cell.outputs:
                # plotly's page carries all of plotly.js; viewers draw from its JSON
                if "application/vnd.plotly.v1+json" in output.get("data", {}):
                    output["data"].pop("text/html", None)
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name))
