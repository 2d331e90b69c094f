"""What stands between the tree and a release: PyPI's page, and a check of every extra."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ADDRESS = "https://forge.test/us/bge"
RELATIVE = re.compile(r"(?:\]\(|\bsrc(?:set)?=\")(?!https?:|#)")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])


def test_links_and_pictures_on_pypi_are_absolute():
    from pypi_readme import for_pypi

    page = for_pypi(README, ADDRESS)
    assert not RELATIVE.search(page)
    assert f'src="{ADDRESS}/raw/main/docs/img/page.png"' in page
    assert f'srcset="{ADDRESS}/raw/main/docs/img/page-dark.png"' in page
    assert f"[CHANGELOG]({ADDRESS}/blob/main/CHANGELOG.md)" in page
    assert f"license-MIT-blue)]({ADDRESS}/blob/main/LICENSE)" in page
    assert page.replace(f"{ADDRESS}/blob/main/", "").replace(f"{ADDRESS}/raw/main/", "") == README


def test_without_an_address_nothing_on_pypi_is_linked_to_nowhere():
    from pypi_readme import for_pypi

    page = for_pypi(README, "")
    assert not RELATIVE.search(page)
    assert "docs/img" not in page
    assert "CHANGELOG" in page
    assert for_pypi("```md\n[a](b.md)\n```\n", "") == "```md\n[a](b.md)\n```\n"


def test_readme_fits_a_minute():
    assert len(README.splitlines()) < 120


def test_every_extra_is_tried_from_the_wheel():
    import check_wheel

    assert PROJECT["project"]["optional-dependencies"].keys() <= check_wheel.USES.keys()
    for code in check_wheel.USES.values():
        compile(code, "use", "exec")
    assert "assert hits[0].page_content == 'A player for music files.'" in check_wheel.USES["langchain,local"]


def test_the_release_check_says_what_is_missing():
    import release_check

    listed = "\n".join(release_check.problems("v9.9.9"))
    assert "the tag is v9.9.9" in listed
    named = PROJECT["project"].get("urls", {})
    assert ("[project.urls] does not name Documentation and Repository" in listed) == (not named)
    badges = [path.name for path in (ROOT / "notebooks").glob("*.ipynb") if "github/REPOSITORY/" in path.read_text()]
    assert all(f"{name}: the Colab badge" in listed for name in badges)


def test_ci_runs_what_the_makefile_runs():
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))["jobs"]
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert ran["quick"] == ["scripts/quick.sh"]
    assert ran["lowest"] == ["scripts/quick.sh lowest-direct"]
    assert (ran["whole"], ran["docs"], ran["wheel"]) == ([".ci/run"], ["make docs"], ["make wheel"])
    assert "scripts/quick.sh installed" in (ROOT / "Makefile").read_text("utf-8")
    classifiers = [line.rpartition(":: ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert jobs["quick"]["strategy"]["matrix"]["python"] == classifiers
    lowest = next(step for step in jobs["lowest"]["steps"] if "setup-python" in step.get("uses", ""))
    assert PROJECT["project"]["requires-python"] == f">={lowest['with']['python-version']}"
