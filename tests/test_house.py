"""The house keeps its own rules."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import bge_integrations

SOURCE = Path(bge_integrations.__file__).parent
HEAVY = {
    "torch", "transformers", "sentence_transformers", "onnxruntime", "openvino", "openai", "httpx", "httpx2", "fastapi",
    "uvicorn", "ray", "tokenizers", "langchain_core", "llama_index", "pydantic", "huggingface_hub", "pyarrow",
    "langchain_text_splitters", "rich", "tqdm", "prometheus_client", "starlette", "safetensors", "pandas", "scipy",
    "ir_measures",
}  # fmt: skip
# A face is its framework's; the server's inner modules are reached only after the extra has been checked.
MAY_IMPORT = {
    "langchain/embeddings.py": {"langchain_core"},
    "langchain/reranker.py": {"langchain_core", "pydantic"},
    "langchain/stores.py": {"langchain_core"},
    "llama_index/embeddings.py": {"llama_index", "pydantic"},
    "langchain/sparse/pinecone.py": {"pydantic"},
    "llama_index/milvus.py": {"llama_index"},
    "llama_index/reranker.py": {"llama_index", "pydantic"},
    "llama_index/sparse.py": {"llama_index", "pydantic"},
    "llama_index/stores.py": {"llama_index"},
}


@cache
def trees() -> dict[Path, ast.Module]:
    """Return every module of the package; read at first use, not by each worker that collects tests."""
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def used(tree: ast.AST, module: str) -> set[str]:
    """Return the attributes of ``module`` that a tree touches, imported names included."""
    touched = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    return touched | {alias.name for node in froms for alias in node.names}


def test_the_environment_is_read_in_one_place():
    readers = {
        name_of(p) for p, tree in trees().items() if used(tree, "os") & {"environ", "getenv", "environb", "putenv"}
    }
    assert readers == {"environment.py"}


def test_printing_is_for_the_command_line():
    def prints(tree):
        return any(
            isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print" for n in ast.walk(tree)
        )

    printers = {name_of(path) for path, tree in trees().items() if prints(tree)}
    assert all(name == "cli.py" or name.startswith("cli/") for name in printers), printers


def test_a_class_name_means_one_thing():
    names = Counter(n.name for tree in trees().values() for n in tree.body if isinstance(n, ast.ClassDef))
    # What each framework or each store has one of; and two reports that users import, of a job and of a comparison.
    assert {name for name, count in names.items() if count > 1} == {
        "BGEM3", "BGEReranker", "Report", "Sparse", "_Target",
    }  # fmt: skip


def test_what_a_protocol_leaves_open_is_inherited_by_no_class():
    """A method that a class forgets would do nothing, without a word; an abstract class refuses to be made."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in classes}
    protocols = {name for name, of in bases.items() if "Protocol" in of}
    assert protocols
    assert [name for name, of in bases.items() if of & protocols and "Protocol" not in of] == []


def top_level_imports(tree: ast.Module) -> set[str]:
    """Return the packages that importing a module imports; not those for type checkers only."""
    found, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)
            ]
    return found


def test_heavy_packages_are_imported_inside_functions():
    def allowed(path):
        inside_server = path.parent.name == "server" and path.name != "__init__.py"
        return HEAVY if inside_server else MAY_IMPORT.get(name_of(path), set())

    early = {name_of(p): (top_level_imports(tree) & HEAVY) - allowed(p) for p, tree in trees().items()}
    assert {name: packages for name, packages in early.items() if packages} == {}


def functions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_lines(function) -> int:
    body = function.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_body_is_over_40_lines():
    assert [(name_of(p), f.name) for p, tree in trees().items() for f in functions(tree) if body_lines(f) > 40] == []


def test_the_role_never_has_a_default():
    def defaults(function):
        arguments = function.args
        positional = arguments.posonlyargs + arguments.args
        return {a.arg for a in positional[len(positional) - len(arguments.defaults) :]} | {
            a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is not None
        }

    offenders = [(name_of(p), f.name) for p, tree in trees().items() for f in functions(tree) if "role" in defaults(f)]
    assert offenders == []


def test_library_calls_never_run_a_loop_of_their_own():
    calls = {
        (name_of(path), node.func.attr)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("run_until_complete",)
    }
    runs = {name_of(path) for path, tree in trees().items() if "run" in used(tree, "asyncio")}
    # The background loop empties itself as it stops, on its own thread. LlamaIndex's Elasticsearch store waits so,
    # and its connections belong to the loop on which it does.
    assert calls <= {("core/event_loop.py", "run_until_complete"), ("stamps/servers.py", "run_until_complete")}
    assert runs == set()


@pytest.mark.parametrize("word", ["unittest.mock", "import mock"])
def test_no_test_uses_mocks(word):
    here = Path(__file__)
    assert [p.name for p in sorted(here.parent.rglob("*.py")) if p != here and word in p.read_text("utf-8")] == []
