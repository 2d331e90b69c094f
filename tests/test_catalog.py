"""Names find their records, and the records say what the models' authors say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
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
    load_encoder,
)
from bge_integrations.catalog import check_served, known_model, provider_at, who_serves
from bge_integrations.catalog.local_folder import read_folder

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
    ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
    ({"pooling_mode": "weightedmean"}, "weightedmean"),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
    ({"pooling_mode": ["max", "lasttoken"]}, "max+last token"),
    ({"word_embedding_dimension": 32}, "mean"),
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


# ---- a path is a path


def test_what_looks_like_a_path_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in (
        "/BAAI/bge-m3", "./bge-small", "../bge-base", "~/bge-large", "C:/bge-m3", "C:\\models\\bge-m3",
        "\\\\host\\bge-m3",
        Path("BAAI/bge-m3"), Path("/bge-small"),
    ):  # fmt: skip
        with pytest.raises(UnknownModelError, match="is a path"):
            find_model(typed)
        assert known_model(str(typed)) is None or isinstance(typed, Path)


def test_a_name_that_is_a_models_folder_here_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("BAAI/bge-m3").folder is None
    folder_of(tmp_path / "BAAI" / "bge-m3", {"hidden_size": 64}, **POOLED)
    folder_of(tmp_path / "demo", **POOLED)
    assert (find_model("BAAI/bge-m3").dimensions, find_model("BAAI/bge-m3").folder) == (64, "BAAI/bge-m3")
    assert find_model("demo").dimensions == 32
    assert find_model("bge-m3").folder is None
    (tmp_path / "bge-small").mkdir()  # a folder that holds no model is no model
    assert find_model("bge-small").folder is None


def test_the_folder_of_a_repository_in_the_hubs_cache_stands_for_its_newest_snapshot(tmp_path):
    repository = tmp_path / "models--somebody--mine"
    for commit, size in (("aaa", 16), ("bbb", 24)):
        folder_of(repository / "snapshots" / commit, {"hidden_size": size}, **POOLED)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    card = find_model(str(repository))
    assert (card.id, card.revision, card.dimensions) == ("somebody/mine", "aaa", 16)


@pytest.mark.parametrize(("typed", "model"), [
    ("bge-small-en-v1___5", "bge-small-en-v1.5"), (" BAAI/bge-base-en-v1.5 ", "bge-base-en-v1.5"),
    ("bge-m3:latest", "bge-m3"), ("local:BAAI/bge-large-en-v1.5", "bge-large-en-v1.5"),
    ("bge-large\n", "bge-large-en-v1.5"),
])  # fmt: skip
def test_spellings_of_download_tools_are_understood(typed, model):
    assert find_model(typed).id == f"BAAI/{model}"


@pytest.mark.parametrize("typed", ["intfloat/e5-base-v2", "Xenova/bge-small-en-v1.5", "bge-m3:567m-fp16"])
def test_a_model_of_somebody_else_is_refused_with_what_to_do(typed):
    with pytest.raises(UnknownModelError, match="wire_model=") as caught:
        find_model(typed)
    assert ("hf download" in str(caught.value)) == ("/" in typed)


# ---- weights


POOLED = {"1_Pooling__config": {"pooling_mode_cls_token": True}}


def weights_in(folder, content=b"fine-tuned", name="model.safetensors"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "onnx/model.onnx"])
def test_a_fine_tune_named_like_its_base_has_a_space_of_its_own(tmp_path, name):
    base = find_model("bge-base-en-v1.5")
    one, two = (folder_of(tmp_path / where / "bge-base-en-v1.5", {"hidden_size": 768}) for where in "ab")
    mine, other = find_model(str(weights_in(one, b"1", name))), find_model(str(weights_in(two, b"2", name)))
    assert len({base.space(), mine.space(), other.space()}) == 3
    assert (mine.id, mine.query_instruction) == (base.id, base.query_instruction)


def test_another_pooling_beside_other_weights_is_in_the_space(tmp_path):
    files = {"1_Pooling__config": {"pooling_mode": "mean"}}
    folder = weights_in(folder_of(tmp_path / "bge-base-en-v1.5", {"hidden_size": 768}, **files))
    assert "/mean/" in find_model(str(folder)).space()


def test_the_published_weights_keep_the_space_wherever_they_lie(tmp_path, monkeypatch):
    content = b"as published"
    card = replace(find_model("bge-base"), weights=(hashlib.sha256(content).hexdigest(),))
    folder = weights_in(folder_of(tmp_path / "bge-base-en-v1.5", {"hidden_size": 768}), content)
    assert read_folder(folder, {"bge-base-en-v1.5": card}).space() == card.space()
    weights_in(folder, content + b"!")
    assert read_folder(folder, {"bge-base-en-v1.5": card}).space() != card.space()


def test_what_the_hub_notes_of_a_download_counts_until_the_file_is_changed(tmp_path):
    card = find_model("bge-large-zh-v1.5")
    folder = weights_in(folder_of(tmp_path / "bge-large-zh-v1.5", {"hidden_size": 1024}))
    note = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{card.revision}\netag\n{time.time()}\n")
    assert find_model(str(folder)).space() == card.space()
    os.utime(folder / "model.safetensors", (time.time() + 60,) * 2)
    assert find_model(str(folder)).space() != card.space()
    note.write_text("not what the hub writes")
    assert find_model(str(folder)).space() != card.space()


def test_the_hubs_cache_names_owner_and_commit(tmp_path):
    def of(owner, commit):
        path = tmp_path / f"models--{owner}--bge-small-en-v1.5" / "snapshots" / commit
        return find_model(str(weights_in(folder_of(path, {"hidden_size": 384}, **POOLED))))

    card = find_model("bge-small-en-v1.5")
    assert of("BAAI", card.revision).space() == card.space()
    assert (of("BAAI", "f" * 40).id, of("BAAI", "f" * 40).revision) == (card.id, "f" * 40)
    other = of("somebody", card.revision)
    assert (other.id, other.query_instruction) == ("somebody/bge-small-en-v1.5", "")
    assert other.space() != card.space()


def test_weights_of_a_dense_layer_count(tmp_path):
    one, two = (folder_of(tmp_path / w / "mine", **POOLED, **{"2_Dense__config": {"out_features": 8}}) for w in "ab")
    for folder, content in ((one, b"1"), (two, b"2")):
        weights_in(folder)
        weights_in(folder, content, "2_Dense/model.safetensors")
    assert find_model(str(one)).space() != find_model(str(two)).space()


# ---- pooling


MODULES = [{"type": "sentence_transformers.models.Transformer", "path": ""}]


@pytest.mark.parametrize("path", ["1_Pooling", "2_Pooling", "pool/ing"])
def test_pooling_is_read_where_modules_json_says(tmp_path, path):
    modules = [*MODULES, {"type": "sentence_transformers.models.Pooling", "path": path}]
    folder = folder_of(tmp_path / "mine", modules=modules, **{"1_Pooling__config": {"pooling_mode": "cls"}})
    (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / path / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    assert find_model(str(folder)).pooling == "max"
    assert "/max/" in find_model(str(folder)).space()


def test_modules_that_pool_in_another_way_are_named(tmp_path):
    folder = folder_of(
        tmp_path / "mine", modules=[*MODULES, {"type": "x.WeightedLayerPooling", "path": "1_W"}], **POOLED
    )
    assert find_model(str(folder)).pooling == "modules"


@pytest.mark.parametrize(("config", "files", "pooling"), [
    ({}, ["training_args.bin"], "cls"), ({}, ["colbert_linear.pt"], "cls"),
    ({"_name_or_path": "BAAI/bge-base-en-v1.5"}, [], "cls"), ({"_name_or_path": "/data/my/bge-reranked"}, [], "cls"),
    ({"_name_or_path": "D:\\m\\bge-m3"}, [], "cls"),
    ({"_name_or_path": "BAAI/bge-en-icl", "model_type": "mistral"}, [], "last token"),
    ({"_name_or_path": "bert-base-uncased"}, [], None), ({"model_type": "qwen2"}, ["training_args.bin"], None),
    ({"_name_or_path": 7}, [], None),
])  # fmt: skip
def test_what_flagembedding_trained_pools_as_it_was_trained(tmp_path, config, files, pooling):
    folder = folder_of(tmp_path / "mine", {"hidden_size": 32, "model_type": "bert", **config})
    for name in files:
        (folder / name).write_bytes(b"x")
    card = find_model(str(folder))
    assert (card.pooling, card.pooling_stated) == (pooling or "mean", pooling is not None)


def test_a_saved_cut_of_the_vectors_is_read(tmp_path):
    folder = folder_of(tmp_path / "mine", config_sentence_transformers={"truncate_dim": 8}, **POOLED)
    assert find_model(str(folder)).dimensions == 8
    folder_of(folder, config_sentence_transformers={"truncate_dim": 999})
    assert find_model(str(folder)).dimensions == 32


@pytest.mark.parametrize(("name", "content"), [
    ("modules.json", "{}"), ("modules.json", "[]"), ("modules.json", "[1]"), ("modules.json", "["),
    ("modules.json", '[{"type": "x.Pooling", "path": "../outside"}]'), ("modules.json", "[" * 100_000),
    ("1_Pooling/config.json", '{"pooling_mode": "middle"}'), ("1_Pooling/config.json", '{"pooling_mode": 5}'),
    ("1_Pooling/config.json", '{"pooling_mode": []}'), ("1_Pooling/config.json", '{"pooling_mode": [["cls"]]}'),
    ("config.json", '{"hidden_size": true}'), ("config.json", '{"hidden_size": -1}'), ("config.json", "\ufeff\x00"),
    ("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
])  # fmt: skip
def test_a_malformed_configuration_is_an_error_of_one_line(tmp_path, name, content):
    folder = folder_of(tmp_path / "mine", **POOLED)
    (folder / name).write_text(content)
    with pytest.raises(ModelLoadError) as caught:
        find_model(str(folder))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["sentence_bert_config", "tokenizer_config", "config_sentence_transformers"])
@pytest.mark.parametrize("content", [
    "[]", "null", '{"max_seq_length": 0, "model_max_length": -5, "truncate_dim": "x"}',
    '{"max_seq_length": null, "model_max_length": 1e30, "truncate_dim": false}',
])  # fmt: skip
def test_settings_that_mean_nothing_are_passed_by(tmp_path, name, content):
    folder = folder_of(tmp_path / "mine", **POOLED)
    (folder / f"{name}.json").write_text(content)
    assert (find_model(str(folder)).dimensions, find_model(str(folder)).max_tokens) == (32, 512)


@pytest.mark.parametrize("path", ["1_Pooling", "3_Other"])
@pytest.mark.parametrize(("pooling", "cut"), [
    ("cls", None), ("mean", None), ("max", None), ("weightedmean", None), ("mean_sqrt_len_tokens", None),
    ("lasttoken", None), (["cls", "mean"], None), ("cls", 64), (["max", "cls"], 300),
], ids=str)  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_folder_embeds_as_sentence_transformers_does(tmp_path, path, pooling, cut):
    transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "mine"
    shutil.copytree(find_model("demo").folder, folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    if path != "1_Pooling":
        (folder / "1_Pooling").rename(folder / path)
    (folder / path / "config.json").write_text(json.dumps({"embedding_dimension": 256, "pooling_mode": pooling}))
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**config, "truncate_dim": cut}))
    texts = ["a text about cats", "another, longer text about mail servers and files", "x"]
    theirs = transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    with load_encoder(folder, query_instruction="", show_progress=False) as encoder:
        ours = encoder.encode(texts, role="document")
        expected = theirs.encode(texts, prompt="", normalize_embeddings=True, show_progress_bar=False)
        np.testing.assert_allclose(ours, expected, atol=2e-5)
