"""What README and docs/ show is what happens: every Python block and `bge` line is run.

A block stands in its page's namespace, as in a notebook. What a comment behind ``print(...)`` promises must be printed.
HTML comments in front of a block say what else to expect: ``<!-- raises: NotServedError -->``, ``<!-- warns: ... -->``,
and ``<!-- not run: reason -->``, of which there are few.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

import bge_integrations
from bge_integrations import PROVIDERS
from bge_integrations.cli import main

ROOT = Path(__file__).parent.parent
NOT_RUN_AT_MOST = 6

# A page names a server that its reader has; here the package's own one stands in, over the bundled model.
SERVERS = ("http://localhost:8080", "http://127.0.0.1:7860")
# The bundled model stands in for the one that would be downloaded. A statement that names a host of the catalogue stays
# as it is: nothing is sent before the first call.
DOWNLOADED = re.compile(r"(?<![\w/])(BAAI/)?bge-small(-en-v1\.5)?(?![\w-])")
STAYS = re.compile(r'provider="(?!local")')
# Not commands of this package: they install, set or show things, and are not run.
FOREIGN = ("pip", "make", "export", "hf", "docker", "gunicorn")

BLOCK = re.compile(r"(?:^<!-- *([^\n]*?) *-->\n)?^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMISE = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block, and what stands in front of it."""

    language: str
    title: str
    text: str
    wish: str

    def wished(self, what: str) -> str:
        found = re.fullmatch(rf"{what}: (.+)", self.wish)
        return found[1] if found else ""


def made_pages():
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = made_pages()
TEXTS = {"README.md": (ROOT / "README.md").read_text("utf-8")}
TEXTS |= {
    str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))
}  # fmt: skip
TEXTS |= {f"made/{name}": text for name, text in PAGES.pages().items() if name.startswith("providers/")}


def blocks_of(text):
    return [
        Block(language, re.search(r'title="([^"]+)"', options)[1] if "title=" in options else "", code, wish)
        for wish, language, options, code in BLOCK.findall(text)
    ]


BLOCKS = {name: found for name, text in TEXTS.items() if (found := blocks_of(text))}


@pytest.fixture
def reader(tmp_path, monkeypatch, demo_url):
    """Somebody in an empty folder, with the servers that pages speak of, and the variables that hosts want."""
    monkeypatch.chdir(tmp_path)
    for provider in PROVIDERS:
        for _, variable in provider.url_env:
            monkeypatch.setenv(variable, "https://example.test" if variable.endswith("HOST") else "an-id")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command line sets its own
    return lambda text: _stand_in(text, demo_url)


def _stand_in(text, demo_url):
    for server in SERVERS:
        text = text.replace(server, demo_url)
    return "".join(part if STAYS.search(part) else DOWNLOADED.sub("demo", part) for part in _statements(text))


def _statements(text):
    """Python's statements, or lines of anything else."""
    lines = text.splitlines(keepends=True)
    try:
        ends = [node.end_lineno for node in ast.parse(text).body]
    except SyntaxError:
        return lines
    starts = [0, *ends[:-1]]
    return ["".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)]


@pytest.fixture
def served(monkeypatch):
    """What ``bge serve`` would serve; test_server_process.py starts it for real."""
    calls = []
    monkeypatch.setattr("bge_integrations.server.serve", lambda encoder, **options: calls.append(options))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(BLOCKS))
def test_what_a_page_shows_is_what_happens(page, reader, served, capsys):
    if warned := sys.modules.get("qdrant_client.common.client_warnings"):
        warned.SEEN_MESSAGES.clear()  # what its client says once a program, a reader's program has not heard yet
    namespace, printed = {"__name__": "page"}, ""
    for block in BLOCKS[page]:
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, "utf-8")
        elif not block.wished("not run"):
            printed = run(block, reader, namespace, printed)


def run(block, reader, namespace, before):
    """Run a block and return what it printed; ``before`` is what the block before it printed."""
    if block.language == "python":
        return run_python(block, reader(block.text), namespace)
    if block.language == "diff":
        return run_python(block, reader(after(block.text)), namespace)
    if block.language == "sh":
        for line in block.text.replace("\\\n", " ").splitlines():
            run_line(line, reader)
        return ""
    assert block.language == "text", f"nobody runs {block.language!r}: is it meant to be shown only?"
    assert block.text in before
    return before


def after(diff):
    """What a diff leads to."""
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(line.removesuffix("\n") for line in lines) + "\n"


def run_python(block, code, namespace):
    printed = io.StringIO()
    expected = contextlib.nullcontext()
    if name := block.wished("raises"):
        expected = pytest.raises(getattr(bge_integrations, name))
    elif name := block.wished("warns"):
        expected = pytest.warns(getattr(bge_integrations, name, None) or getattr(builtins, name))
    with expected, contextlib.redirect_stdout(printed):
        execute(code, namespace)
    for promise in PROMISE.findall(code):
        assert promise in printed.getvalue().splitlines(), f"{promise!r} was promised"
    return printed.getvalue()


def execute(code, namespace):
    compiled = compile(code, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        asyncio.run(result)


def run_line(line, reader):
    if not line.strip() or line.startswith("#"):
        return
    words = shlex.split(reader(line), comments=True)
    if words[0] == "bge":
        assert run_bge(words[1:]) == 0, line
    elif words[0] == "curl":
        run_curl(words)
    else:
        assert words[0] in FOREIGN, f"nobody runs {line!r}"


def run_bge(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BGE_SERVE_KEYS", "first-key,second-key")
        return main(words)


def run_curl(words):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    done = subprocess.run([*words, "--fail"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout[:1]) == (0, "{"), done.stderr


def test_few_blocks_are_not_run_and_all_say_why():
    left_out = [block.wished("not run") for blocks in BLOCKS.values() for block in blocks if "not run" in block.wish]
    assert len(left_out) <= NOT_RUN_AT_MOST
    assert all(len(reason) > 10 for reason in left_out)


def test_every_wish_is_understood():
    wishes = [(page, block.wish) for page, blocks in BLOCKS.items() for block in blocks if block.wish]
    assert not [wish for wish in wishes if not re.match(r"(not run|raises|warns): \w", wish[1])]


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ('print("one")  # two', AssertionError),
        ("raise ValueError", ValueError),
        ("import warnings; warnings.warn('x', stacklevel=1)", UserWarning),
    ],
)
def test_a_page_that_promises_too_much_is_noticed(block, complaint):
    with pytest.raises(complaint):
        run_python(Block("python", "", block, ""), block, {"__name__": "page"})


def test_a_line_that_cannot_be_is_noticed(reader):
    for line in ("bge verify --model demo --no-such-option", "rm -r folder"):
        with pytest.raises((SystemExit, AssertionError)):
            run_line(line, reader)


def test_every_host_and_every_model_has_its_place():
    pages = PAGES.pages()
    assert {PAGES.provider_path(provider) for provider in PROVIDERS} < set(pages)
    assert all(f"`{card.id}`" in pages["reference/models.md"] for card in bge_integrations.MODELS)
    for provider in PROVIDERS:
        page = pages[PAGES.provider_path(provider)]
        assert all(offer.wire in page for offer in provider.offers)
        assert all(name in page for name in provider.key_env)
        assert provider.checked in page
        assert provider.source in page


@pytest.mark.parametrize(
    "module", ["", ".bulk", ".evaluate", ".langchain", ".llama_index", ".ray", ".server", ".verify"]
)
def test_every_public_name_has_its_place_in_the_reference(module):
    public = set(importlib.import_module(f"bge_integrations{module}").__all__)
    reference = "\n".join(text for name, text in TEXTS.items() if name.startswith("docs/reference/"))
    errors = {name for name in public if name.endswith(("Error", "Warning"))}  # all on a made page
    assert {name for name in public - errors if not re.search(rf"[.`]{name}\b", reference)} == set()


FIGURES = """{
 "texts": 1234,
 "machine": {"cpu": "one", "cores": 2},
 "engines": {
  "ours": {"load_seconds": 0.25, "mixed": {"seconds": 2.5, "samples": [2.5, 3]}},
  "theirs": {"load_seconds": 1, "mixed": {"seconds": 10000.5}}
 },
 "runs": [{"latency": 0, "rates": {"ours": 7, "theirs": null}}, {"latency": 30, "rates": {"ours": 5}}]
}"""


def test_benchmarks_show_what_is_there_and_say_what_is_not(tmp_path):
    (tmp_path / "soak.json").write_text(FIGURES)
    page = PAGES.benchmarks_page(tmp_path)
    for line in (
        "Texts 1,234.",
        "Machine: cpu one; cores 2.",
        "|  | load seconds |\n| --- | --- |\n| this package | 0.25 |\n| theirs | 1 |",
        "#### Passages of mixed length\n\n|  | seconds |\n| --- | --- |\n| this package | 2.5 |\n| theirs | 10,000 |",
        "|  | latency 0 | latency 30 |\n| --- | --- | --- |\n| this package | 7 | 5 |\n| theirs |  |  |",
    ):
        assert line in page
    assert page.count("Not measured yet") == len(PAGES.BENCHMARKS) - 1
