"""Counting and cutting before texts are sent: the same ids as a model that cuts by ids, on every engine."""

from __future__ import annotations

import pickle
import random
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tokenizers import Tokenizer

import models
from bge_integrations import ConfigError, InputError, TruncationWarning, load_encoder
from bge_integrations.catalog import find_model
from bge_integrations.core.tokenizer import TextTokenizer, find_tokenizer
from rig import Rig, rows

EN = "Represent this sentence for searching relevant passages: "
ODD = [
    "naïve café déjà",
    "汉字和标点，都要",
    "한국어 문장",
    "e\u0301a\u0308",
    "👩‍👩‍👧 joined",
    "x" * 150,
    "a-b_c.d/e",
    "ǅ ﬁ ½ ™",
    "\u200bzero",
]
KINDS = {"word pieces": "bge-small", "sentence pieces": "bge-m3"}


@cache
def texts_of(seed: int = 0, count: int = 60) -> list[str]:
    draw = random.Random(seed)
    words = [word for text in models.TEXTS for word in text.split()] + ODD
    return [" ".join(draw.choices(words, k=draw.randint(1, 80))) for _ in range(count)]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def file(kind):
    return models.folder(KINDS[kind], layers=1) / "tokenizer.json"


def ids_of(file, texts: list[str], most: int | None = None, side: str = "right") -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if most:
        tokenizer.enable_truncation(most, direction=side)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def cutter_of(file, side: str = "right") -> TextTokenizer:
    found = find_tokenizer(find_model("bge-small"), file)
    assert found is not None
    found._side = side
    return found


def test_counts_are_those_of_the_tokenizer(file):
    assert cutter_of(file).count(texts_of()) == [len(ids) for ids in ids_of(file, texts_of())]


@pytest.mark.parametrize("most", [3, 5, 16, 33])
@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_left_reads_as_the_ids_that_a_model_would_keep(kind, file, most, side):
    texts, whole = texts_of(), ids_of(file, texts_of())
    cut, long, counts = cutter_of(file, side).cut(texts, most)
    kept, again = ids_of(file, texts, most, side), ids_of(file, cut)
    assert long == [i for i, ids in enumerate(whole) if len(ids) > most]
    assert all(len(ids) <= most for ids in again)
    for i, text in enumerate(texts):
        if i in long:
            assert counts[i] == len(again[i])
            assert text.startswith(cut[i]) if side == "right" else text.endswith(cut[i])
        else:
            assert cut[i] == text
    if kind == "word pieces" and side == "right":
        assert again == kept
    else:  # the word in which the cut falls may be read otherwise
        inner = [ids[1:-1] if side == "right" else ids[-2:0:-1] for ids in kept]
        read = [ids[1:-1] if side == "right" else ids[-2:0:-1] for ids in again]
        assert max(len(a) - shared(a, b) for a, b in zip(inner, read, strict=True)) <= 12
        assert np.mean([len(a) - shared(a, b) for a, b in zip(inner, read, strict=True)]) <= 2


def shared(a: list[int], b: list[int]) -> int:
    """Return how many ids two lists share from their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_nothing_is_copied_where_nothing_is_cut(file):
    texts = ["short", "texts"]
    assert cutter_of(file).cut(texts, 512)[0] is texts


def test_long_lists_and_texts_that_cannot_be_too_long(file):
    texts = ["word"] * 5000 + ["word " * 600]
    cut, long, counts = cutter_of(file).cut(texts, 512)
    assert long == [5000]
    assert cut[:5000] == texts[:5000]
    assert counts[5000] <= 512
    assert min(counts) > 0


def test_a_tokenizer_may_be_a_file_a_folder_or_an_object(file):
    card = find_model("bge-small")
    given = Tokenizer.from_file(str(file))
    given.enable_truncation(4)
    given.enable_padding(length=9)
    for tokenizer in (file, str(file), file.parent, given):
        found = find_tokenizer(card, tokenizer)
        assert found is not None
        assert found.count(texts_of()) == [len(ids) for ids in ids_of(file, texts_of())]
    assert given.truncation is not None  # the user's own object is left as it was
    assert given.padding is not None


@pytest.mark.parametrize("wrong", ["/nowhere/tokenizer.json", 5, b"bytes"])
def test_what_is_no_tokenizer(wrong):
    with pytest.raises(ConfigError):
        find_tokenizer(find_model("bge-small"), wrong)


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        find_tokenizer(find_model("bge-small"), tmp_path)


def test_it_is_found_in_the_models_folder_and_in_the_hubs_cache_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    card = find_model("bge-small")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_tokenizer(card) is None
    snapshot = tmp_path / "models--BAAI--bge-small-en-v1.5" / "snapshots" / card.revision
    snapshot.mkdir(parents=True)
    source = models.folder("bge-small", layers=1) / "tokenizer.json"
    (snapshot / "tokenizer.json").write_bytes(source.read_bytes())
    assert find_tokenizer(card).count(["word"]) == [3]
    other = replace(card, revision="0" * 40)
    assert find_tokenizer(other) is None
    assert find_tokenizer(replace(card, folder=str(source.parent))).count(["word"]) == [3]
    assert find_tokenizer(replace(card, folder=str(tmp_path))) is None


@pytest.fixture(scope="module")
def huge(file):
    """Texts of which a model reads a small part, and how many tokens each has."""
    words = " ".join(texts_of(3, 80))
    whole = [
        words,
        "汉字和标点，都要" * 1200,
        "x" * 12_000,
        "a b " * 4000,
        "." * 12_000,
        " " * 20_000 + words,
        "[SEP]" * 2000,
        "<s></s>" * 2000,
        "e\u0301" * 6000,
        words + "\n" * 9000 + words,
        "it's " * 3000,
    ]
    texts = [text[:-cut] for text in whole for cut in (1, 6)]
    return texts, [len(ids) for ids in ids_of(file, texts)]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "most"), [("right", 16), ("left", 100)])
def test_only_an_end_of_a_huge_text_is_read_and_its_ids_are_those_of_the_whole(file, huge, side, most):
    texts, counts = huge
    tokenizer = TextTokenizer.read(file, most)
    tokenizer._tokenizer.enable_truncation(most, direction=side)
    tokenizer._side = side
    tokens = tokenizer.tokenize(texts)
    assert [item.tolist() for item in tokens.items] == ids_of(file, texts, most, side)
    assert tokens.truncated == [i for i, count in enumerate(counts) if count > most]
    assert tokenizer.count(texts) == counts
    for some in (slice(None), slice(1), slice(4, 5)):
        cut, long, lengths = cutter_of(file, side).cut(texts[some], most)
        assert long == [i for i, count in enumerate(counts[some]) if count > most]
        assert [len(ids) for ids in ids_of(file, cut)] == lengths
        assert max(lengths) <= most


def test_what_is_read_of_a_huge_text_does_not_grow_with_it(file):
    tokenizer = TextTokenizer.read(file, 64)
    read = []

    class Noted:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            def encode(texts, **options):
                read.extend(map(len, texts))
                return getattr(self.inner, name)(texts, **options)

            return encode if name.startswith("encode_batch") else getattr(self.inner, name)

    tokenizer._tokenizer = Noted(tokenizer._tokenizer)
    tokenizer.tokenize(["some words and more " * 500_000])
    assert sum(read) < 64 * 64
    read.clear()
    tokenizer.cut(["some words and more " * 500_000], 64)
    assert sum(read) < 64 * 128


LONG = [f"{'word ' * 700}number {i}" for i in range(2)]
TEXTS = ["short", LONG[0], "short too", LONG[1]]


@pytest.fixture
def remote_of(demo_url):
    made = []

    def make(**options):
        made.append(load_encoder("demo", **{"base_url": f"{demo_url}/v1", "show_progress": False, **options}))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("space", [False, True])
def test_local_and_remote_cut_alike(demo, remote_of, demo_url, role, space):
    remote = remote_of(**({"provider": "space", "base_url": demo_url} if space else {}))
    with pytest.warns(TruncationWarning, match="positions 1, 3") as said:
        vectors = remote.encode(TEXTS, role=role)
    assert len(said) == 1
    with pytest.warns(TruncationWarning, match="positions 1, 3"):
        expected = demo.encode(TEXTS, role=role)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_what_is_beyond_the_limit_is_not_sent_and_the_instruction_counts():
    limit = find_model("bge-small").max_tokens
    tokenizer = models.folder("bge-small", layers=1)
    with (
        Rig() as host,
        load_encoder("bge-small", base_url=host.url, tokenizer=tokenizer, show_progress=False) as encoder,
    ):
        for role in ("document", "query"):
            with pytest.warns(TruncationWarning):
                encoder.encode([LONG[0]], role=role)
        document, query = (sent[0] for sent in host.sent)
        assert query.startswith(EN)
        assert [len(ids) for ids in ids_of(tokenizer / "tokenizer.json", [document, query])] == [limit, limit]


def test_error_refuses_before_anything_is_sent():
    tokenizer = models.folder("bge-small", layers=1)
    options = {"tokenizer": tokenizer, "truncate": "error", "max_inputs": 1, "show_progress": False}
    with Rig() as host, load_encoder("bge-small", base_url=host.url, **options) as encoder:
        with pytest.raises(InputError) as caught:
            encoder.encode(TEXTS, role="document")
        assert caught.value.positions == (1, 3)
        assert host.requests == []


def test_without_a_tokenizer_texts_are_sent_as_they_are():
    with Rig() as host, load_encoder("bge-small", base_url=host.url, show_progress=False) as encoder:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder.encode(LONG, role="document")
        assert host.sent == [LONG]


def test_tokens_are_counted_where_the_host_does_not():
    uncounted = rows(lambda data: data, usage=None)
    with Rig(256, default=uncounted) as host, load_encoder("demo", base_url=host.url, show_progress=False) as encoder:
        encoder.encode(["word " * 130], role="document")
        assert encoder.usage.tokens == sum(find_tokenizer(encoder.card).count(["word " * 130])) == 132


def test_an_encoder_with_a_tokenizer_travels(demo, remote_of):
    tokenizer = Tokenizer.from_file(str(models.demo() / "tokenizer.json"))
    twin = pickle.loads(pickle.dumps(remote_of(tokenizer=tokenizer)))
    with pytest.warns(TruncationWarning):
        vectors = twin.encode(LONG, role="document")
    with pytest.warns(TruncationWarning):
        np.testing.assert_allclose(vectors, demo.encode(LONG, role="document"), atol=2e-5)
    twin.close()
