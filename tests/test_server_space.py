"""The Space's files: the linter has nothing to say, and what they call exists."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bge_integrations.catalog import find_model
from bge_integrations.cli import serve

SPACE = Path(__file__).parent.parent / "deploy" / "space"
DOCKERFILE = (SPACE / "Dockerfile").read_text()
README = (SPACE / "README.md").read_text()
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_the_linter_has_nothing_to_say():
    done = subprocess.run([HADOLINT, SPACE / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_parses_with_and_without_keys():
    command = json.loads(re.search(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[1])[-1]
    base = re.sub(r"\$\{BGE_SERVE_KEYS.*\}", "", command).split()
    assert base[:3] == ["exec", "bge", "serve"]
    for keys in ([], ["--api-key-env", "BGE_SERVE_KEYS"]):
        parser = argparse.ArgumentParser()
        serve.add_arguments(parser)
        parsed = parser.parse_args([*base[3:], *keys])
        assert (parsed.host, parsed.port) == ("0.0.0.0", 7860)
    shell = ["sh", "-c", command.replace("exec bge", "echo"), "sh"]
    for value, tail in (("", "7860"), ("a,b", "BGE_SERVE_KEYS")):
        environment = {"BGE_SERVE_KEYS": value, "PATH": "/usr/bin:/bin"}
        said = subprocess.run(shell, capture_output=True, text=True, env=environment, timeout=10).stdout
        assert said.split()[-1] == tail


def test_ports_models_and_user_agree():
    assert "app_port: 7860" in README
    assert "EXPOSE 7860" in DOCKERFILE
    assert re.search(r"^USER 1000$", DOCKERFILE, re.MULTILINE)
    models = set(re.findall(r"ARG MODEL=(\S+)", DOCKERFILE))
    assert len(models) == 1
    assert f"  - {find_model(models.pop()).id}\n" in README


def test_the_front_matter_is_what_a_docker_space_needs():
    matter = dict(line.split(": ", 1) for line in README.split("---")[1].splitlines() if ": " in line)
    assert matter["sdk"] == "docker"
    assert len(matter["short_description"]) <= 60
    assert {matter["colorFrom"], matter["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }


def test_the_version_is_the_packages():
    project = (SPACE.parent.parent / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)[1]
    assert f"ARG VERSION={version}\n" in DOCKERFILE
