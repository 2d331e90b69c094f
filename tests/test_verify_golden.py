"""Known values: what counts as the same space, and what a host looks like beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bge_integrations import load_encoder
from bge_integrations.catalog import MODELS, find_model
from bge_integrations.catalog.golden import BFLOAT16, Golden, judge, read_golden, to_golden_json
from bge_integrations.errors import ConfigError, SpaceMismatchError
from bge_integrations.verify import verify
from bge_integrations.verify.probes import make_probes
from encoders import HashEncoder, hash_vectors
from misbehaving import Host
from test_canary import BASE, SMALL, Recorded

LARGE = find_model("bge-large-en-v1.5")
LAURA = "Laura is a DJ."


def full(card):
    return next(golden for golden in read_golden().vectors if golden.model == card.id and golden.text == LAURA)


def vector(golden, dimensions):
    row = np.zeros(dimensions, np.float32)
    row[list(golden.at)] = list(golden.at.values())
    return row


def noisy(row, share, seed=0):
    noise = np.random.default_rng(seed).standard_normal(len(row))
    mixed = row + share * noise / np.linalg.norm(noise)
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def test_every_published_value_is_of_a_model_of_the_catalogue_and_fits_it():
    values = read_golden()
    assert {golden.model for golden in values.vectors} <= {card.id for card in MODELS}
    for golden in values.vectors:
        assert max(golden.at) < find_model(golden.model).dimensions
        assert golden.source
        assert golden.tolerance or golden.cosine_at_least
        assert sum(value**2 for value in golden.at.values()) < 1.0001
    assert values.token_counts[LAURA] == full(BASE).prompt_tokens == 7
    assert {item.model for item in values.similarities} <= {card.id for card in MODELS}


@pytest.mark.parametrize("card", [BASE, LARGE], ids=["base", "large"])
def test_a_recorded_answer_is_the_same_space_with_noise_lower_precision_shuffled_not_the_model(card):
    golden, row = full(card), vector(full(card), card.dimensions)
    assert judge(golden, row).verdict == "same space"
    assert judge(golden, row.astype(np.float16).astype(np.float32)).verdict == "same space"
    lower = judge(golden, noisy(row, 0.01))
    assert lower.verdict == "same model at lower precision"
    assert 0.9999 < lower.cosine < 0.99998
    assert judge(golden, noisy(row, 0.15)).verdict == "same model at lower precision"
    assert judge(golden, np.random.default_rng(1).permutation(row)).verdict == "not this model"
    assert judge(golden, np.roll(row, 1)).verdict == "not this model"
    assert judge(golden, hash_vectors([LAURA], card.dimensions)[0]).verdict == "not this model"


@pytest.mark.parametrize("share", [0.01 * i for i in range(1, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_one_to_five_percent_of_noise_are_lower_precision_whatever_the_noise(share, seed):
    row = vector(full(BASE), BASE.dimensions)
    each = row * (1 + share * np.random.default_rng(seed).standard_normal(len(row)))
    for spoilt in (noisy(row, share, seed), each / np.linalg.norm(each)):
        assert judge(full(BASE), spoilt).verdict == "same model at lower precision"


def test_partial_values_go_by_the_deviation_of_their_components():
    golden = read_golden().of(SMALL)[0]
    row = Recorded(SMALL).encode([golden.text], role="document")[0]
    assert judge(golden, row).verdict == "same space"
    for shift, verdict in [
        (0.9e-3, "same space"),
        (BFLOAT16 - 1e-4, "same model at lower precision"),
        (0.03, "not this model"),
    ]:
        moved = row.copy()
        moved[2] += shift
        assert judge(golden, moved).verdict == verdict


def test_another_model_s_partial_values_are_not_taken():
    golden = read_golden().of(SMALL)[0]
    random = np.random.default_rng(3).standard_normal((3000, 384))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert sum(judge(golden, row).verdict != "not this model" for row in random) <= 3
    other = next(item for item in read_golden().vectors if item.model == "BAAI/bge-small-en")
    row = hash_vectors(["rest"], 384)[0]
    row[list(other.at)] = list(other.at.values())
    assert judge(golden, row).verdict == "not this model"


def test_values_of_a_less_exact_origin_say_what_they_allow():
    m3 = next(golden for golden in read_golden().vectors if golden.model == "BAAI/bge-m3")
    row = vector(m3, 1024)
    assert judge(m3, noisy(row, 0.12)).verdict == "same space"
    assert judge(m3, noisy(row, 0.2)).verdict == "same model at lower precision"
    assert judge(m3, noisy(row, 0.5)).verdict == "not this model"


@pytest.mark.parametrize("card", [BASE, LARGE, SMALL], ids=["base", "large", "small"])
@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ({}, "same space"),
        ({"noise": 0.01}, "same model at lower precision"),
        ({"shuffled": True}, "not this model"),
    ],
)
def test_verify_says_what_the_golden_values_say(card, wrong, verdict):
    report = verify(Recorded(card, **wrong), behaviour=False)
    if card is SMALL and verdict == "same model at lower precision":
        verdict = "same space"  # one percent is within the tolerance of five numbers
    assert report.verdict == verdict
    scores = [finding.name for finding in report.problems]
    # The stand-in has no scores of queries against passages to show, and verify sees it.
    assert scores == (["published scores"] if card is SMALL else [])


def test_another_model_of_the_catalogue_is_named():
    class Swapped(Recorded):
        def _published(self, golden):
            return hash_vectors([golden.text], 384)[0]

        def vectors(self, texts, role):
            rows = super().vectors(texts, role)
            other = {golden.text: golden for golden in read_golden().vectors if golden.model == "BAAI/bge-small-en"}
            for row, text in zip(rows, texts, strict=True):
                if text in other:
                    row[list(other[text].at)] = list(other[text].at.values())
            return rows

    report = verify(Swapped(SMALL), behaviour=False)
    assert report.verdict == "not this model"
    assert "these are the published values of BAAI/bge-small-en" in report.notes
    assert not report.ok


def test_without_values_and_reference_nothing_is_claimed():
    report = verify(HashEncoder(), behaviour=False)
    assert report.verdict == "not checked"
    assert not report.ok
    assert report.cosine is None
    assert "compare it with a reference" in report.notes[0]


def test_a_user_s_file_is_read_and_a_wrong_one_is_explained(tmp_path):
    path = tmp_path / "golden.json"
    encoder = HashEncoder()
    row = encoder.encode(["hello"], role="query")[0]
    golden = Golden(encoder.card.id, "hello", {0: float(row[0]), 15: float(row[15])}, role="query", source="me")
    path.write_text(to_golden_json([golden], "mine"))
    assert verify(encoder, golden=path, behaviour=False).verdict == "same space"
    assert verify(HashEncoder(query_instruction=""), golden=str(path), behaviour=False).verdict == "not this model"
    with pytest.raises(ConfigError, match=r"holds values of test/hash, none of 'BAAI/bge-base-en-v1\.5'"):
        verify(Recorded(BASE), golden=path)
    for nonsense in (
        "{",
        "[]",
        '{"vectors": [{"model": "a"}]}',
        '{"vectors": [{"model": "a", "text": "b", "at": {}}]}',
    ):
        path.write_text(nonsense)
        with pytest.raises(ConfigError, match="needs a list 'vectors'"):
            verify(encoder, golden=path)
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        verify(encoder, golden=tmp_path / "nowhere.json")


def test_values_beyond_the_dimensions_are_refused():
    with pytest.raises(ConfigError, match="beyond the 16 dimensions"):
        judge(Golden("test/hash", "a", {16: 0.1}), np.zeros(16))


def test_written_values_read_back_the_same(tmp_path):
    path = tmp_path / "golden.json"
    row = hash_vectors(["a"], 384)[0]
    path.write_text(to_golden_json([Golden("m", "ü\n", dict(enumerate(row.tolist())), role="query")], "about"))
    (golden,) = read_golden(path).vectors
    assert (golden.role, golden.text, len(golden.at)) == ("query", "ü\n", 384)
    assert judge(golden, row).cosine == pytest.approx(1, abs=1e-9)
    assert json.loads(path.read_text())["about"] == "about"


def test_the_probes_are_about_forty_and_of_every_kind():
    probes = make_probes(512)
    assert 38 <= len(probes) <= 45
    assert {probe.kind for probe in probes} == {"short", "sentence", "code", "cased", "unicode", "blank-ish", "long"}
    assert {probe.role for probe in probes} == {"query", "document"}
    assert all(probe.text.strip() for probe in probes)
    assert len({(probe.role, probe.text) for probe in probes}) == len(probes)


def test_long_probes_fill_the_limit_and_no_more():
    def count(texts):
        return [len(text.split()) * 3 + 2 for text in texts]

    longest = max(count([probe.text])[0] for probe in make_probes(256, count))
    assert 250 <= longest <= 256
    assert max(count([probe.text])[0] for probe in make_probes(8192, count)) <= 512


@pytest.fixture
def recorded_host(request):
    """A stub of the seeds' recorded answers over HTTP, and an encoder of it made the way users make one."""
    with Host({"right": request.param}, "") as host:
        host.inner = request.param
        yield host


def open_host(host, **options):
    return load_encoder(host.inner.card.id, base_url=f"{host.url}/v1", show_progress=False, max_retries=0, **options)


RECORDED = {
    "base": (Recorded(BASE), "same space"),
    "large": (Recorded(LARGE), "same space"),
    "base, 1 % noise": (Recorded(BASE, noise=0.01), "same model at lower precision"),
    "large, 1 % noise": (Recorded(LARGE, noise=0.01), "same model at lower precision"),
    "base, shuffled": (Recorded(BASE, shuffled=True), "not this model"),
    "large, shuffled": (Recorded(LARGE, shuffled=True), "not this model"),
}


@pytest.mark.parametrize(("recorded_host", "verdict"), RECORDED.values(), ids=RECORDED, indirect=["recorded_host"])
def test_the_recorded_answers_over_http(recorded_host, verdict):
    with open_host(recorded_host) as encoder:
        report = verify(encoder, behaviour=False)
    assert report.verdict == verdict
    assert report.ok is (verdict != "not this model")


@pytest.mark.parametrize("recorded_host", [Recorded(LARGE)], indirect=True)
def test_the_other_model_s_recorded_answer_is_not_this_model(recorded_host):
    with load_encoder("bge-base-en-v1.5", base_url=f"{recorded_host.url}/v1", max_retries=0) as encoder:
        report = verify(encoder, behaviour=False)
    assert report.verdict == "not this model"
    assert "1024" in report.notes[-1]


@pytest.mark.parametrize("recorded_host", [Recorded(BASE, shuffled=True)], indirect=True)
def test_first_use_keeps_texts_from_a_wrong_host(recorded_host):
    with open_host(recorded_host, verify="first-use") as encoder, pytest.raises(SpaceMismatchError):
        encoder.encode(["secret"], role="document")
    assert [body["input"] for body in recorded_host.requests] == [[LAURA]]


@pytest.mark.parametrize("recorded_host", [Recorded(BASE)], indirect=True)
def test_first_use_asks_the_right_host_once_a_day(recorded_host):
    for _ in range(2):
        with open_host(recorded_host, verify="first-use") as encoder:
            assert encoder.encode(["a text"], role="document").shape == (1, 768)
    assert [body["input"] for body in recorded_host.requests] == [[LAURA], ["a text"], ["a text"]]
