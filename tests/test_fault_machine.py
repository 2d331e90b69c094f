"""Any sequence of faults ends in the fault-free vectors or a typed error, and the cache holds only true rows."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import rig as faults
from bge_integrations import errors
from fault_faces import FACES, Face
from rig import Rig, cap, cut, first_is, latency, raw, refuse_marked, reset_peer, rows, spoilt, status

pytestmark = pytest.mark.slow

TEXTS = [f"text {i}" for i in range(12)]
QUERIES = [f"query {i}" for i in range(3)]
INSTRUCTION = "Represent this sentence for searching relevant passages: "

ONCE: dict[str, Any] = {
    "429": status(429, Retry_After_Ms=5),
    "429 for long": status(429, Retry_After=60),
    "500": status(500),
    "401": status(401),
    "400": status(400),
    "404": status(404),
    "402": status(402),
    "reset": reset_peer(),
    "reset in the body": reset_peer(500),
    "short": cut(),
    "cut": cut(honest=True),
    "empty": raw(b""),
    "html": raw("<html>", "text/html"),
    "error with 200": raw('{"error": "no"}'),
    "less": rows(lambda d: d[:-1]),
    "more": rows(lambda d: [*d, d[0]]),
    "reverse": rows(lambda d: d[::-1]),
    "no index": rows(lambda d: [{"embedding": row["embedding"]} for row in d]),
    "same index": rows(lambda d: [{**row, "index": 0} for row in d]),
    "nan": spoilt(first_is("@NaN@")),
    "null": spoilt(first_is(None)),
    "zero": spoilt(lambda row: [0.0] * len(row)),
    "long rows": spoilt(lambda row: [*row, 1.0]),
    "bad base64": spoilt(lambda row: "A"),
    "scaled": spoilt(lambda row: [7 * x for x in row]),
    "hang": faults.timeout(),
    "drip": faults.slicer(),
    "slow": latency(0.05),
    "redirect": lambda x: faults.redirect(307, x.rig.space_url)(x),
    "other model": rows(lambda d: d, model="BAAI/bge-m3"),
}
ALWAYS: dict[str, Any] = {
    "well": None,
    "at most 3": cap(3),
    "at most 1": cap(1, 400, "batch size {} is over the maximum {}"),
    "poison": spoilt(first_is("@NaN@"), "text 7"),
    "too large": refuse_marked("text 5", 413, "payload too large"),
    "down": status(503),
}


class AnyFaults(RuleBasedStateMachine):
    @initialize(name=st.sampled_from(FACES), space=st.booleans())
    def start(self, name: str, space: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bge-faults-"))
        self.host = Rig().__enter__()
        where = {"provider": "space", "base_url": self.host.space_url} if space else {"base_url": self.host.url}
        self.name, self.options = name, {"max_concurrency": 3, "max_inputs": 4, "max_retries": 2, **where}
        self.face = self.new_face()

    def new_face(self, seconds: float = 0.4) -> Face:
        return Face(self.name, self.folder / "cache.sqlite", {**self.options, "timeout": seconds})

    @rule(kinds=st.lists(st.sampled_from(sorted(ONCE)), min_size=1, max_size=4))
    def once(self, kinds: list[str]) -> None:
        self.host.script(*(ONCE[kind] for kind in kinds))

    @rule(kind=st.sampled_from(sorted(ALWAYS)))
    def always(self, kind: str) -> None:
        self.host.default = ALWAYS[kind]

    @rule(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12))
    def documents(self, texts: list[str]) -> None:
        before = self.held()
        self.host.requests.clear()
        outcome = self.face.call(texts)
        after = self.held()
        assert set(before) <= set(after)
        assert not {text for part in self.host.sent for text in part} & set(before)
        if outcome.error is None:
            np.testing.assert_allclose(outcome.vectors, self.host.truth(texts), atol=1e-6)
        else:
            self.check_error(outcome.error, texts, after)

    def check_error(self, error: errors.BGEError, texts: list[str], held: dict[str, Any]) -> None:
        assert isinstance(error, errors.HostError), repr(error)
        assert sorted([*error.finished, *error.unfinished]) == list(range(len(texts)))
        assert {texts[i] for i in error.finished} == set(held) & set(texts)

    @rule(text=st.sampled_from(QUERIES))
    def query(self, text: str) -> None:
        try:
            vector = self.face.query(text)
        except errors.HostError:
            return
        np.testing.assert_allclose(vector, self.host.truth([INSTRUCTION + text])[0], atol=1e-6)

    @rule()
    def restart(self) -> None:
        self.face.close()
        self.face = self.new_face()

    @precondition(lambda self: self.host.default is not None or self.host._script)
    @rule()
    def heal(self) -> None:
        self.face.close()
        self.host.forget().default = None
        self.face = self.new_face(30)
        missing = [text for text in TEXTS if text not in self.held()]
        outcome = self.face.call(TEXTS)
        assert outcome.error is None, repr(outcome.error)
        np.testing.assert_allclose(outcome.vectors, self.host.truth(TEXTS), atol=1e-6)
        assert sorted(text for part in self.host.sent for text in part) == sorted(missing)
        self.restart()

    def held(self) -> dict[str, Any]:
        """Return what the cache holds, all of it true."""
        held = self.face.held(TEXTS)
        for text, vector in held.items():
            np.testing.assert_allclose(vector, self.host.truth([text])[0], atol=1e-6)
        return held

    def teardown(self) -> None:
        if hasattr(self, "face"):
            self.face.close()
            self.host.close()
            shutil.rmtree(self.folder)
            assert not self.host.failures, self.host.failures


TestAnyFaults = AnyFaults.TestCase
TestAnyFaults.settings = settings(
    max_examples=25,
    stateful_step_count=14,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
