"""What the notebooks keep: results that anyone may read, and nothing of the machine that made them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(rf"/home/|/root/|/Users/|/tmp/|site-packages|\.venv|{re.escape(str(ROOT))}")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text("utf-8"))


def code(notebook):
    """Return the cells that are run: not those that install, which are tagged."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if "skip-execution" not in cell["metadata"].get("tags", [])]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_smaller_than_a_megabyte(path):
    assert path.stat().st_size < 1_000_000


def test_outputs_are_kept_and_say_nothing_of_the_machine(notebook):
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    assert not MACHINE.findall(json.dumps(outputs))


def test_no_warning_error_or_widget_is_kept(notebook):
    for cell in code(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            assert not any("widget" in kind for kind in output.get("data", {}))


def test_it_was_run_from_top_to_bottom_in_one_go(notebook):
    assert [cell["execution_count"] for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


def test_metadata_is_no_more_than_the_kernel(notebook):
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
