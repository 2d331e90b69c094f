"""The command line says in one line what could not be done, whatever its output is connected to."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bge_integrations.cli import main, make_parser
from bge_integrations.cli.options import add_encoder_arguments, encoder_options
from bge_integrations.options import OPTIONS

BGE = [sys.executable, "-m", "bge_integrations.cli"]


def run(*arguments, **options):
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run([*BGE, *arguments], stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options)


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_encoder_arguments(parser)
    return encoder_options(parser.parse_args(arguments))


def test_every_option_is_on_the_command_line_with_its_help():
    parser = argparse.ArgumentParser()
    add_encoder_arguments(parser)
    flags = {action.dest: action for action in parser._actions if action.dest not in ("help", "model")}
    assert set(flags) == {name for name, option in OPTIONS.items() if option.flag}
    for name, action in flags.items():
        assert action.option_strings == ["--" + name.replace("_", "-")]
        assert action.help == OPTIONS[name].help
    assert parsed() == {}


def test_values_have_the_types_of_the_table():
    assert parsed("--timeout", "5", "--max-retries", "0", "--allow-http", "--accept-space", "last token") == {
        "timeout": 5.0, "max_retries": 0, "allow_http": True, "accept_space": "last token",
    }  # fmt: skip
    assert parsed("--headers", "X-A: b:c", "--headers", "X-D:") == {"headers": {"X-A": "b:c", "X-D": ""}}


@pytest.mark.parametrize("arguments", [
    ["embed", "a.jsonl", "-o", ""], ["embed", "", "-o", "out"], ["export", "demo", "-o", " "], ["demo", ""],
    ["quantise", "shards", "--to", "int8", "-o", ""], ["quantise", "", "--to", "int8", "-o", "out"],
    ["eval", "a.jsonl", "--cache", ""], ["eval", "a.jsonl", "--output", ""], ["eval", ""], ["rerank", "a question", ""],
    ["verify", "--model", "demo", "--pin", ""], ["verify", "--model", "demo", "--golden", ""], ["search", "", "words"],
    ["dups", ""], ["dups", "shards", "--drop", ""], ["upload", "", "--into", "faiss"], ["cache", "clear", "--path", ""],
    ["upload", "shards", "--into", "faiss", "--path", ""], ["upload", "shards", "--into", "qdrant", "--key-env", ""],
    ["upload", "shards", "--into", "chroma", "--collection", " "], ["search", "shards", ""], ["models", ""],
    ["search", "shards", "words", "--model", ""], ["embed", "a.jsonl", "-o", "out", "--id", ""], ["rerank", ""],
    ["embed", "a.jsonl", "-o", "out", "--text", ""], ["eval", "a.jsonl", "--run", ""],
    ["eval", "a.jsonl", "--measures", ""],
    ["demo", "--ask", ""], ["serve", "--api-key-env", ""], ["verify", "--model", "demo", "--api-key", ""],
])  # fmt: skip
def test_a_blank_value_is_refused(capsys, tmp_path, monkeypatch, arguments):
    """It would be the working directory, or count as omitted: ``cache clear`` would clear the user's own cache."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "it is empty: is a variable not set?" in error
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("arguments", [
    ["models", "no-such-model"], ["verify", "--headers", "no colon"], ["verify", "--provider", "nobody"],
    ["export", "demo", "-o", "/proc/nowhere"], ["demo", "/no/such/folder"], ["verify", "--timeout", "-1"],
    ["verify", "--model", "demo", "--golden", "/no/such/file"], ["demo", "--model", "/BAAI/bge-m3"],
])  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_exit_code_2(capsys, arguments):
    assert main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bge: ")]
    assert len(error) == 1
    assert "Traceback" not in error[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = run("models", stdout=full)
    assert (done.returncode, done.stderr) == (2, "bge: No space left on device\n")


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = run("models", stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_chinese_gets_escapes():
    done = run("models", "bge-large-zh", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\u4e3a" in done.stdout


MISSING = """
import sys
for name in ("langchain_core", "prometheus_client", "langchain_text_splitters"):
    sys.modules[name] = None
from bge_integrations.cli import main, make_parser
sys.exit(main(["demo"]))
"""


def test_a_demo_names_all_that_is_missing_at_once():
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "bge-integrations[langchain,server" in done.stderr  # and torch, where that is not installed
    assert len(done.stderr.splitlines()) == 1


ALONE = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {missing} else find_spec(name, *rest)
from bge_integrations.cli import main
sys.exit(main({arguments}))
"""


@pytest.mark.parametrize(
    ("arguments", "missing", "extras"),
    [
        (["embed", "x.jsonl", "-o", "out"], ["pyarrow", "torch", "onnxruntime"], "bulk,local"),
        (["embed", "x.jsonl", "-o", "out", "--on", "ray"], ["ray", "torch", "onnxruntime"], "ray,local"),
        (["embed", "x.jsonl", "-o", "out", "--on", "ray", "--provider", "tei"], ["ray", "pyarrow"], "bulk,ray"),
        (["serve"], ["uvicorn", "torch", "onnxruntime"], "server,local"),
        (["verify", "--model", "demo"], ["torch", "onnxruntime"], "local"),
        (["verify", "--model", "demo"], ["torch"], "local"),
        (["rerank", "q", "x.txt"], ["torch", "onnxruntime"], "local"),
    ],
)
def test_a_command_names_all_that_is_missing_at_once(arguments, missing, extras, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "x.txt").write_text("a")
    code = ALONE.format(missing=set(missing), arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f'pip install "bge-integrations[{extras}]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
import bge_command
sys.argv = ["bge", "models"]
sys.exit(bge_command.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of POSIX")
@pytest.mark.parametrize(
    ("module", "code"), [("bge_integrations.catalog", -signal.SIGINT), ("bge_integrations.cli.verify", 130)]
)
def test_ctrl_c_while_the_command_is_imported_shows_no_traceback(module, code):
    program = INTERRUPTED.format(module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


BARE = """
import sys
sys.modules["tqdm"] = None
sys.modules["tqdm.auto"] = None
sys.stderr.isatty = lambda: True
from bge_integrations.cli.verify import _bar
with _bar() as on_step:
    print(on_step)
"""


def test_verify_needs_no_tqdm():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "None", done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("serach x", "did you mean search?"),
        ("embd x", "did you mean embed?"),
        ("embed a.jsonl -o out --kep title", "did you mean --keep?"),
        ("serve --prot 80", "did you mean --port?"),
        ("embed a.jsonl -o out --what-is-this 3", "no option --what-is-this (see"),
    ],
)
def test_a_slip_of_the_hand_is_one_line_with_what_was_meant(typed, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        main(typed.split())
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert meant in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("typed", [[], ["help"], ["help", "search"], ["--help"], ["version"], ["--version"]])
def test_help_and_version_are_words_too(typed, capsys):
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    wanted = "usage: bge search" if "search" in typed else "usage: bge [-h]"
    assert (importlib.metadata.version("bge-integrations") if "version" in str(typed) else wanted) in shown


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "bge_integrations", "version"], capture_output=True, text=True)
    assert done.stdout.strip() == importlib.metadata.version("bge-integrations")


def test_every_option_of_every_command_has_help():
    def options(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    yield from options(child)
            elif not action.help:
                yield f"{parser.prog} {action.option_strings or action.dest}"

    assert list(options(make_parser())) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert "embed" in shown
    assert "--query-instruction" in shown


def test_completion_for_fish_names_commands_options_and_choices(capsys):
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"complete -c bge .* -d '(?:[^'\\]|\\.)*'", line) for line in lines)
    assert any("-n __fish_use_subcommand -a embed " in line for line in lines)
    embed = [line for line in lines if "__fish_seen_subcommand_from embed'" in line]
    assert any(" -l query-instruction -r -d 'query instruction instead of the model\\'s own" in line for line in embed)
    assert any(" -l format -r -f -a 'parquet numpy jsonl' -d" in line for line in embed)
    assert any(r" -a 'cls mean last\\ token' " in line for line in embed)
    assert any(" -s o -l out -r -d" in line for line in embed)
    assert any(" -l update -d" in line for line in embed)
