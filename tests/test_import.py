"""Importing is light, and says what is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bge_integrations
from bge_integrations.errors import MissingExtraError
from bge_integrations.extras import require, require_all

SOURCE = Path(bge_integrations.__file__).parent
HEAVY = {
    "torch", "transformers", "sentence_transformers", "onnxruntime", "openvino", "openai", "fastapi", "uvicorn", "ray",
    "tokenizers", "langchain_core", "llama_index", "pydantic", "huggingface_hub", "safetensors", "sqlite3", "httpx",
    "httpx2", "pandas", "pyarrow", "tqdm", "rich",
}  # fmt: skip


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_import_takes_few_modules_and_none_but_python_s_own():
    """What an import costs is what it imports: this many take some 60 ms, numpy alone as much again."""
    code = "import sys; before = set(sys.modules); import bge_integrations; print(*set(sys.modules) - before)"
    imported = set(python(code).stdout.split())
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "bge_integrations"}
    assert 10 < len(imported) < 170


@pytest.mark.parametrize(
    "statement",
    [
        "import bge_integrations",
        "import bge_integrations as b; b.find_model('bge-m3'); b.find_provider('deepinfra')",
    ],
)
def test_import_brings_no_heavy_package(statement):
    shown = python(f"{statement}; import sys; print(*sorted({{n.partition('.')[0] for n in sys.modules}}))")
    assert shown.returncode == 0, shown.stderr
    assert not HEAVY & set(shown.stdout.split())


def test_a_remote_encoder_is_put_together_without_torch():
    code = (
        "from bge_integrations import load_encoder; import sys; "
        "load_encoder('bge-base', provider='deepinfra', api_key='k'); "
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'langchain_core' in sys.modules)"
    )
    shown = python(code)
    assert shown.stdout.split() == ["False"] * 3, shown.stderr


@pytest.mark.slow  # test_house reads the same from the modules' own lines
def test_faces_import_only_their_own_framework_and_no_torch():
    code = "import bge_integrations.{}, sys; print('torch' in sys.modules, {!r} in sys.modules)"
    for face, other in (("langchain", "llama_index"), ("llama_index", "langchain_core")):
        shown = python(code.format(face, other))
        assert shown.stdout.split() == ["False", "False"], (face, shown.stdout, shown.stderr)


@pytest.mark.parametrize(("face", "needs", "extra"), [
    ("langchain", "langchain_core", "langchain"),
    ("llama_index", "llama_index", "llama-index"),
])  # fmt: skip
def test_a_missing_framework_is_said_with_the_extra_that_brings_it(face, needs, extra):
    code = f"import sys; sys.modules[{needs!r}] = None; import bge_integrations.{face}"
    shown = python(code)
    assert shown.returncode == 1
    assert "MissingExtraError: " in shown.stderr
    assert f"bge-integrations[{extra}]" in shown.stderr.splitlines()[-1]


def test_all_is_sorted_complete_and_has_no_logic_behind_it():
    names = bge_integrations.__all__
    constants = [name for name in names if name.isupper()]
    classes = [name for name in names if name[0].isupper() and not name.isupper()]
    functions = [name for name in names if name[0].islower()]
    assert names == sorted(constants) + sorted(classes) + sorted(functions)
    assert len(names) == len(set(names))
    assert all(hasattr(bge_integrations, name) for name in names)
    public = {
        name
        for name, value in vars(bge_integrations).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("bge_integrations")
    }
    assert public <= set(names)


def test_type_information_is_shipped():
    from importlib.resources import files

    assert (files("bge_integrations") / "py.typed").is_file()


def test_import_raises_no_warning_and_needs_no_assertions():
    shown = python("import bge_integrations", "-W", "error", "-O")
    assert shown.returncode == 0, shown.stderr


# ---- what is missing is said with what to install


def test_what_is_missing_is_said_with_one_line_to_install():
    with pytest.raises(
        MissingExtraError, match=r'^reading needs no_such: pip install "bge-integrations\[bulk\]"$'
    ) as caught:
        require("no_such.inner", extra="bulk", purpose="reading")
    assert isinstance(caught.value, ImportError)
    with pytest.raises(MissingExtraError, match=r"^this needs no_such: pip install no-such x$"):
        require("no_such", install="no-such x")
    assert require("json.decoder", extra="bulk").JSONDecoder


def test_all_that_is_missing_is_said_at_once():
    with pytest.raises(MissingExtraError) as caught:
        require_all({"bulk": ("no_such", "json"), "local": ("json",), "onnx": ("nothing",)}, purpose="bge demo")
    assert str(caught.value) == 'bge demo needs no_such, nothing: pip install "bge-integrations[bulk,onnx]"'
    require_all({"bulk": ("json",)})


def test_a_package_that_is_there_and_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"cannot be imported.*not_there_at_all"):
        require("broken_one", extra="bulk")


def test_every_extra_that_is_named_exists():
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    calls = [
        node
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"
    ]
    extras = {word.value.value for call in calls for word in call.keywords if word.arg == "extra"}
    assert extras
    assert extras <= set(project["optional-dependencies"])
