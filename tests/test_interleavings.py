"""Another thread closes an engine between any two instructions of a call that only reads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import models
from bge_integrations import load_encoder, load_reranker
from bge_integrations.catalog import find_model
from bge_integrations.remote.engine import RemoteEngine
from bge_integrations.remote.host import HostSession
from bge_integrations.remote.host_client import HostClient
from interleaving import at_step
from rig import Rig

pytestmark = pytest.mark.slow


def closed_at_every_step(engine, use, read, *functions):
    """Use an engine and close it while ``read`` runs: before its first instruction that loads, its second..."""
    codes = {function.__code__ for function in functions}
    for step in range(1, 1000):
        use()
        with at_step(step, codes, engine.close, kind="LOAD_") as done:
            assert isinstance(read(), dict)
        if not done:
            return step
    raise AssertionError


def test_describe_of_a_local_engine_that_is_closed_meanwhile():
    engine = load_encoder(models.demo(), show_progress=False).engine
    use = lambda: engine.encode(["a"], role="query")  # noqa: E731
    assert closed_at_every_step(engine, use, engine.describe, type(engine).describe) > 10


def test_describe_of_a_local_reranker_that_is_closed_meanwhile():
    reranker = load_reranker(models.reranker("bert")).engine
    use = lambda: reranker.score("a", ["b"])  # noqa: E731
    assert closed_at_every_step(reranker, use, reranker.describe, type(reranker).describe) > 10


def test_describe_of_an_engine_at_a_host_that_is_closed_meanwhile():
    card = find_model("bge-m3")
    with Rig(card.dimensions) as host:
        engine = load_encoder(card.id, base_url=host.url, allow_http=True, show_progress=False).engine
        use = lambda: engine.encode(["a"], role="query")  # noqa: E731
        functions = (RemoteEngine.describe, RemoteEngine._about_outputs)
        assert closed_at_every_step(engine, use, engine.describe, *functions) > 10


def test_a_client_that_is_closed_as_a_call_begins_says_so():
    card = find_model("bge-small")
    with Rig(card.dimensions) as host:
        engine = load_encoder(card.id, base_url=host.url, allow_http=True, show_progress=False).engine
        assert np.allclose(engine.encode(["a"], role="document"), host.truth(["a"]), atol=1e-6)

        async def begin():
            with at_step(step, {HostClient._here.__code__}, close, kind="LOAD_") as done:
                return engine._here(), done

        def close():
            closer.start()
            closer.join(0.05)  # its end waits for this loop

        done, step = [0], 0
        while done:
            step += 1
            closer = threading.Thread(target=engine.close)
            session, done = engine._loop.run(begin()).result(60)
            assert isinstance(session, HostSession)
            if done:
                closer.join()
        assert step > 5
        engine.close()
