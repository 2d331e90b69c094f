"""Vectors go away with the last who holds them, not when Python next collects cycles: a long job stays small."""

from __future__ import annotations

import gc
import time
import weakref

import pytest

from bge_integrations import load_encoder
from rig import Rig


@pytest.fixture
def no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def where(kind, tmp_path, host):
    local = {"model": "demo", "show_progress": False}
    there = {"base_url": host.url, "api_key": "k", "show_progress": False}
    return {
        "local": local,
        "local, cached": {**local, "cache": str(tmp_path / "cache.sqlite")},
        "remote": there,
        "remote, cached": {**there, "cache": str(tmp_path / "cache.sqlite")},
        "remote, with a bar": {**there, "show_progress": True},
    }[kind]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("local", marks=pytest.mark.slow),
        pytest.param("local, cached", marks=pytest.mark.slow),
        "remote",
        "remote, cached",
        "remote, with a bar",
    ],
)
def test_vectors_go_with_their_last_holder(kind, tmp_path):
    with Rig() as host, load_encoder(**where(kind, tmp_path, host)) as encoder:
        for turn in range(3):
            rows = encoder.encode([f"{turn} text {i}" for i in range(150)], role="document")
        whole = weakref.ref(rows if rows.base is None else rows.base)
        del rows
        for _ in range(1000):
            if whole() is None:
                break
            time.sleep(0.01)  # the engine's thread is on its way out of the call
        assert whole() is None


def test_the_event_loop_of_an_encoder_goes_when_it_is_closed():
    with Rig() as host, load_encoder("bge-small", base_url=host.url, api_key="k", show_progress=False) as encoder:
        loops = []
        for _ in range(3):
            encoder.encode(["a"], role="document")
            loops.append(weakref.ref(encoder.engine._loop._loop))
            encoder.close()
        for _ in range(100):  # the loop's own thread lets go of it last
            gc.collect()
            left = [loop for loop in loops if loop() is not None]
            if not left:
                break
            time.sleep(0.05)
        assert left == []
