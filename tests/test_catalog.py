"""Names find their records, and the records say what the models' authors say."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, replace

import pytest

from bge_integrations import (
    MODELS,
    PROVIDERS,
    ConfigError,
    ModelLoadError,
    NotServedError,
    UnknownModelError,
    UnknownProviderError,
    find_model,
    find_provider,
)
from bge_integrations.catalog import check_served, provider_at, who_serves

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："
TASK = "Given a web search query, retrieve relevant passages that answer the query."

# id, dimensions, max_tokens, instruction, pooling, start of the pinned revision
FACTS = [
    ("bge-small-en-v1.5", 384, 512, EN, "cls", "5c38ec7c"),
    ("bge-small-en", 384, 512, EN, "cls", None),
    ("bge-small-zh-v1.5", 512, 512, ZH, "cls", "7999e1d3"),
    ("bge-small-zh", 512, 512, ZH, "cls", None),
    ("bge-base-en-v1.5", 768, 512, EN, "cls", "a5beb1e3"),
    ("bge-base-en", 768, 512, EN, "cls", None),
    ("bge-base-zh-v1.5", 768, 512, ZH, "cls", "f03589ce"),
    ("bge-base-zh", 768, 512, ZH, "cls", None),
    ("bge-large-en-v1.5", 1024, 512, EN, "cls", "d4aa6901"),
    ("bge-large-en", 1024, 512, EN, "cls", None),
    ("bge-large-zh-v1.5", 1024, 512, ZH, "cls", "79e7739b"),
    ("bge-large-zh", 1024, 512, ZH, "cls", None),
    ("bge-m3", 1024, 8192, "", "cls", "5617a9f6"),
    ("bge-multilingual-gemma2", 3584, 8192, TASK, "last token", "992e13d8"),
    ("bge-en-icl", 4096, 32768, TASK, "last token", "971c7e14"),
    ("bge-code-v1", 1536, 4096, None, "last token", None),
]
QUERY, TASKED = "what is\n a  Panda? ", "find the panda"
# What a model reads for QUERY, with the card's own instruction and with "find the panda".
READS = {
    **{f"bge-{size}-en{v}": (EN + QUERY, TASKED + QUERY) for size in ("small", "base", "large") for v in ("", "-v1.5")},
    **{f"bge-{size}-zh{v}": (ZH + QUERY, TASKED + QUERY) for size in ("small", "base", "large") for v in ("", "-v1.5")},
    "bge-m3": (QUERY, TASKED + QUERY),
    "bge-multilingual-gemma2": (f"<instruct>{TASK}\n<query>{QUERY}", f"<instruct>{TASKED}\n<query>{QUERY}"),
    "bge-en-icl": (f"<instruct>{TASK}\n<query>{QUERY}\n<response>", f"<instruct>{TASKED}\n<query>{QUERY}\n<response>"),
    "bge-code-v1": (None, f"<instruct>{TASKED}\n<query>{QUERY}"),
}
BGE = [card for card in MODELS if card.id.startswith("BAAI/")]


def test_all_sixteen_models_are_there():
    assert {card.id for card in BGE} == {f"BAAI/{name}" for name, *_ in FACTS}


@pytest.mark.parametrize(("name", "dimensions", "max_tokens", "instruction", "pooling", "revision"), FACTS)
def test_the_card_says_what_the_authors_say(name, dimensions, max_tokens, instruction, pooling, revision):
    card = find_model(f"BAAI/{name}")
    assert (card.dimensions, card.max_tokens, card.pooling) == (dimensions, max_tokens, pooling)
    assert card.query_instruction == instruction
    assert (card.revision or "None").startswith(str(revision))
    assert card.source
    assert card.checked


@pytest.mark.parametrize("name", READS)
def test_a_query_reads_exactly_as_the_card_says_and_a_document_is_left_alone(name):
    card, (default, tasked) = find_model(name), READS[name]
    if default is None:
        with pytest.raises(ConfigError, match="query_instruction"):
            card.format(QUERY, "query")
    else:
        assert card.format(QUERY, "query") == default
    assert card.format(QUERY, "query", TASKED) == tasked
    assert card.format(QUERY, "query", "") == QUERY
    for given in (None, "", TASKED):
        assert card.format(QUERY, "document", given) == QUERY


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-en-icl", "bge-multilingual-gemma2"])
def test_braces_in_texts_and_instructions_are_only_text(name):
    card = find_model(name)
    for text, given in [("{text} {instruction}", "do {text}"), ("{}", "{0}"), ("%s", "{instruction}")]:
        assert card.format(text, "query", given).count(text) == 1 + given.count(text)
        assert given in card.format(text, "query", given)


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        ("BAAI/bge-small-en-v1.5", "bge-small-en-v1.5"),
        ("bge-small-en-v1.5", "bge-small-en-v1.5"),
        ("bge-small", "bge-small-en-v1.5"),
        ("bge-base", "bge-base-en-v1.5"),
        ("bge-large", "bge-large-en-v1.5"),
        ("BGE-Small", "bge-small-en-v1.5"),
        ("baai/BGE-M3", "bge-m3"),
        ("bge-small-en", "bge-small-en"),
        ("@cf/baai/bge-base-en-v1.5", "bge-base-en-v1.5"),
        ("@cf/baai/bge-m3", "bge-m3"),
        ("baai/bge-m3", "bge-m3"),
        ("Pro/BAAI/bge-m3", "bge-m3"),
        ("databricks-bge-large-en", "bge-large-en-v1.5"),
        ("bge-large-zh", "bge-large-zh"),  # Qianfan's spelling is another model's own name: the name wins
        ("BAAI/bge-en-icl/", "bge-en-icl"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(typed, model):
    assert find_model(typed).id == f"BAAI/{model}"


@pytest.mark.parametrize(("typed", "near"), [
    ("bge-smal", "BAAI/bge-small-en-v1.5"), ("bge-small-en-v15", "BAAI/bge-small-en-v1.5"), ("bge-m4", "BAAI/bge-m3"),
    ("bge-gema2", "BAAI/bge-multilingual-gemma2"),
])  # fmt: skip
def test_a_miss_names_near_matches(typed, near):
    with pytest.raises(UnknownModelError, match=re.escape(near)) as caught:
        find_model(typed)
    assert repr(typed) in str(caught.value)


def test_a_name_like_nothing_is_refused_without_a_guess():
    with pytest.raises(UnknownModelError, match="zzzzzz") as caught:
        find_model("zzzzzz")
    assert "near" not in str(caught.value)


def test_providers_are_found_and_misses_name_near_ones():
    assert find_provider("DeepInfra").name == "deepinfra"
    with pytest.raises(UnknownProviderError, match="deepinfra"):
        find_provider("depinfra")
    with pytest.raises(UnknownProviderError, match="openrouter"):
        find_provider("qqq")


def test_no_two_records_share_a_name():
    own = [name.lower() for card in MODELS for name in (card.id, *card.aliases)]
    assert len(own) == len(set(own))
    assert len({provider.name for provider in PROVIDERS}) == len(PROVIDERS)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name)
def test_a_provider_record_is_whole(provider):
    assert provider.source
    assert provider.checked
    assert provider.name == provider.name.lower()
    assert all(offer.model in {card.id for card in MODELS} for offer in provider.offers)
    assert all(find_model(offer.model).id == offer.model for offer in provider.offers)
    if provider.base_url:
        assert not provider.base_url.endswith(("/", "/embeddings"))
    if provider.needs_key:
        assert provider.key_env


@pytest.mark.parametrize("record", [MODELS[0], PROVIDERS[0], PROVIDERS[0].offers[0]], ids=lambda r: type(r).__name__)
def test_records_are_frozen(record):
    with pytest.raises(FrozenInstanceError):
        record.source = "elsewhere"


def test_what_hosts_charge_and_cap_is_known():
    assert find_provider("gigarouter").offer("BAAI/bge-small-en-v1.5").usd_per_million_tokens == 0.008
    assert {p.name: p.max_inputs for p in PROVIDERS if p.max_inputs} == {
        "deepinfra": 1024, "siliconflow": 32, "cloudflare": 100, "qianfan": 16, "tei": 32, "infinity": 2048,
        "llama.cpp": 16, "ollama": 16, "lmstudio": 16,
    }  # fmt: skip


def test_a_withdrawn_offer_is_refused_with_the_date_and_who_serves_the_model_now():
    aimlapi, card = find_provider("aimlapi"), find_model("bge-base")
    with pytest.raises(NotServedError, match="2026-03-30") as caught:
        check_served(aimlapi, card)
    assert "deepinfra" in str(caught.value)
    check_served(aimlapi, card, allow_withdrawn=True)
    assert "aimlapi" not in who_serves(card.id)


def test_a_model_that_a_host_does_not_have_is_refused_whatever_is_allowed():
    with pytest.raises(NotServedError, match="together does not serve 'BAAI/bge-m3'") as caught:
        check_served(find_provider("together"), find_model("bge-m3"), allow_withdrawn=True)
    assert "siliconflow" in str(caught.value)


def test_a_server_that_runs_what_it_is_given_refuses_nothing():
    check_served(find_provider("tei"), find_model("bge-code-v1"))


def test_hosts_that_pool_otherwise_are_not_named_as_serving():
    assert "cloudflare" not in who_serves("BAAI/bge-small-en-v1.5")


@pytest.mark.parametrize(("url", "name"), [
    ("https://api.deepinfra.com/v1/openai", "deepinfra"),
    ("https://API.together.xyz/v1/", "together"),
    ("https://api.cloudflare.com/client/v4/accounts/abc/ai/v1", "cloudflare"),
    ("https://api.openai.com/v1", "openai"),
    ("http://localhost:11434/v1", None),
    ("https://deepinfra.example.com/v1", None),
    ("gateway.example.com/v1", None),
    ("https://api.deepinfra.com.evil.example/v1", None),
])  # fmt: skip
def test_a_url_finds_its_host(url, name):
    found = provider_at(url)
    assert (found and found.name) == name


def folder_of(path, config=None, **files):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"hidden_size": 32, "model_type": "bert"}))
    for name, data in files.items():
        file = path / name.replace("__", "/")
        file = file.with_suffix(".json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(data))
    return path


def test_a_folder_named_like_a_known_model_with_its_dimensions_takes_its_card(tmp_path):
    folder = folder_of(tmp_path / "bge-small-en-v1.5", {"hidden_size": 384})
    assert find_model(str(folder)) == replace(find_model("bge-small-en-v1.5"), folder=str(folder))


def test_a_folder_of_the_hubs_cache_is_known_by_its_repository(tmp_path):
    folder = folder_of(tmp_path / "models--BAAI--bge-m3" / "snapshots" / "5617a9f6", {"hidden_size": 1024})
    assert find_model(str(folder)).id == "BAAI/bge-m3"


def test_a_folder_with_a_known_name_and_other_dimensions_is_a_model_of_its_own(tmp_path):
    folder = folder_of(tmp_path / "bge-small-en-v1.5", {"hidden_size": 32, "max_position_embeddings": 512})
    card = find_model(str(folder))
    assert (card.id, card.dimensions, card.query_instruction) == ("bge-small-en-v1.5", 32, "")
    assert card.instruction_needed == "unknown"


def test_any_other_folder_says_itself_what_it_is(tmp_path):
    folder = folder_of(
        tmp_path / "mine",
        {"hidden_size": 32, "model_type": "xlm-roberta", "max_position_embeddings": 514},
        **{"1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}},
    )
    card = find_model(str(folder))
    assert (card.id, card.pooling, card.max_tokens) == ("mine", "cls", 512)
    assert card.revision
    folder_of(folder, sentence_bert_config={"max_seq_length": 128})
    assert find_model(str(folder)).max_tokens == 128


@pytest.mark.parametrize(("pooling", "expected"), [
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
    ({"pooling_mode_lasttoken": True}, "last token"),
    ({"pooling_mode": "cls"}, "cls"),
    ({"pooling_mode": "lasttoken"}, "last token"),
    (None, "mean"),
])  # fmt: skip
def test_a_folder_pools_as_sentence_transformers_would(tmp_path, pooling, expected):
    files = {} if pooling is None else {"1_Pooling__config": pooling}
    assert find_model(str(folder_of(tmp_path / "mine", **files))).pooling == expected


def test_a_dense_layer_decides_the_dimensions(tmp_path):
    folder = folder_of(tmp_path / "mine", **{"2_Dense__config": {"in_features": 32, "out_features": 8}})
    assert find_model(str(folder)).dimensions == 8


def test_other_weights_are_another_revision_wherever_the_folder_lies(tmp_path):
    one, two, three = (folder_of(tmp_path / where / "mine") for where in "abc")
    for folder, weights in ((one, b"x" * 1000), (two, b"x" * 1000), (three, b"x" * 999 + b"y")):
        (folder / "model.safetensors").write_bytes(weights)
    assert find_model(str(one)).space() == find_model(str(two)).space()
    assert find_model(str(one)).space() != find_model(str(three)).space()


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"hidden_size": "a"}'])
def test_a_folder_without_a_model_says_so(tmp_path, config):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=re.escape(str(folder))):
        find_model(str(folder))


def test_the_space_names_what_decides_the_vectors():
    card = find_model("bge-small")
    assert card.space() == card.space(EN)
    assert len({card.space(), card.space(""), card.space("other"), card.space(variant="int8")}) == 4
    assert card.space("other").startswith(card.document_space())
    assert replace(card, pooling="mean").document_space() != card.document_space()
    assert replace(card, revision="0" * 40).document_space() != card.document_space()


def test_records_of_two_models_never_share_a_space():
    assert len({card.space("x") for card in MODELS}) == len(MODELS)
