"""A job over a host that fails, killed and begun again: the small version of ``benchmarks/soak.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "soak.py"


def test_a_job_that_is_killed_twice_ends_with_every_vector_right():
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    found = soak.soak(3000, 2, share=0.4, seed=3, limit=100)
    soak.check(found)
    assert found["kills"] == 2
    assert found["failed_requests"] > 10
