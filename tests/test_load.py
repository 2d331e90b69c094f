"""One place reads the environment and puts an encoder together; nothing is loaded or sent before the first call."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import traceback
import warnings
from typing import Any, get_args, get_type_hints

import pytest

from bge_integrations import (
    BGEError,
    BGEWarning,
    ConfigError,
    InsecureHostError,
    InstructionWarning,
    MissingKeyError,
    ModelLoadError,
    NotServedError,
    Options,
    UnknownModelError,
    UnknownProviderError,
    find_model,
    load_encoder,
    load_reranker,
)
from bge_integrations.environment import cache_path, is_loopback, switched_on
from bge_integrations.keys import Hidden, HiddenValues, Key, keys_from
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.langchain import BGEReranker as LangChainReranker
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.llama_index import BGEReranker as LlamaIndexReranker
from bge_integrations.options import OPTIONS, RERANKER_OPTIONS, RerankerOptions
from bge_integrations.remote.endpoint import SecretHeaders

CANARY = "sk-canary-4242"
LOCAL = "http://127.0.0.1:9/v1"


class Masked:
    def get_secret_value(self):
        return CANARY


def endpoint(*args, **options):
    return load_encoder(*args, **options).engine.endpoint


# ---- which model


def test_the_model_is_what_the_call_says_then_the_environment_then_the_default(monkeypatch):
    assert load_encoder().card.id == "BAAI/bge-small-en-v1.5"
    monkeypatch.setenv("BGE_MODEL", "bge-base")
    assert load_encoder().card.id == "BAAI/bge-base-en-v1.5"
    assert load_encoder("bge-large").card.id == "BAAI/bge-large-en-v1.5"
    assert load_encoder(model_name="bge-m3").card.id == "BAAI/bge-m3"


def test_an_unknown_model_is_refused_at_once():
    with pytest.raises(UnknownModelError, match="bge-small-en-v1\\.5"):
        load_encoder("bge-smal")


def test_an_unknown_option_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match="did you mean 'query_instruction'"):
        load_encoder("demo", query_instructions="x")
    with pytest.raises(ConfigError, match=r"options: .*timeout") as caught:
        load_encoder("demo", apikey_=CANARY)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("truncate", "eror"), ("blank", "skip"), ("verify", "always"), ("accept_space", "max"),
    ("timeout", 0), ("timeout", -1), ("timeout", "60"), ("max_retries", -1), ("max_retries", 1.5), ("max_inputs", 0),
    ("max_concurrency", 0), ("requests_per_minute", 0), ("tokens_per_minute", -5), ("query_instruction", 7),
    ("base_url", 7), ("provider", 7), ("max_inputs", True),
])  # fmt: skip
def test_an_option_with_a_value_that_means_nothing_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}.*{re.escape(repr(value))}"):
        load_encoder("bge-small", **{"base_url": LOCAL, name: value})


@pytest.mark.parametrize("digits", [400, 5000])  # more than a float holds, more than Python writes down
@pytest.mark.parametrize("name", ["timeout", "read_timeout", "requests_per_minute"])
def test_a_number_beyond_all_bounds_is_refused(name, digits):
    with pytest.raises(ConfigError, match=f"{name} must be a number") as caught:
        load_encoder("bge-small", **{"base_url": LOCAL, name: 10**digits})
    assert len(str(caught.value)) < 200


def test_a_folder_that_says_nothing_of_its_instruction_warns_once_and_only_then(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32}))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.warns(InstructionWarning, match=f"'{tmp_path.name}' is not in the catalogue") as caught:
        load_encoder(str(tmp_path))
    assert len(caught) == 1
    for given in ("", "find: "):
        encoder = load_encoder(str(tmp_path), query_instruction=given)
        assert encoder.format(["x"], "query") == [f"{given}x"]


@pytest.mark.parametrize(("given", "read"), [
    (None, "Represent this sentence for searching relevant passages: q"), ("", "q"), ("  do\n", "  do\nq"),
])  # fmt: skip
@pytest.mark.parametrize("where", [{}, {"base_url": LOCAL}], ids=["local", "remote"])
def test_the_instruction_is_the_cards_or_the_users_byte_for_byte(given, read, where):
    encoder = load_encoder("bge-small", query_instruction=given, **where)
    assert encoder.format(["q"], "query") == [read]
    assert encoder.format(["q"], "document") == ["q"]


def test_local_and_remote_agree_on_the_space_and_other_instructions_do_not():
    local, remote = load_encoder("bge-small"), load_encoder("bge-small", provider="gigarouter", api_key="k")
    assert local.space == remote.space == find_model("bge-small").space()
    assert load_encoder("bge-small", query_instruction="").space != local.space


# ---- which host


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_is_loopback_by_name_and_by_address(host):
    assert is_loopback(host)
    assert is_loopback(host, bound=True)


@pytest.mark.parametrize(
    "host", ["", "localhost.example", "10.0.0.1", "::2", "::ffff:10.0.0.1", "127.0.0.1.example", "127.1"]
)
def test_other_hosts_are_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_the_unspecified_address_is_this_machine_to_a_client_and_every_network_to_a_server(host):
    assert is_loopback(host)
    assert not is_loopback(host, bound=True)


def test_nothing_said_is_this_machine_and_the_environment_can_name_a_host(monkeypatch):
    assert type(load_encoder("bge-small").engine).__name__ == "LocalEngine"
    monkeypatch.setenv("BGE_BASE_URL", LOCAL)
    assert endpoint("bge-small").base_url == LOCAL
    assert type(load_encoder("bge-small", provider="local").engine).__name__ == "LocalEngine"
    assert endpoint("bge-small", base_url="http://localhost:1/v1").base_url == "http://localhost:1/v1"


def test_the_environment_can_name_a_provider(monkeypatch):
    monkeypatch.setenv("BGE_PROVIDER", "deepinfra")
    monkeypatch.setenv("DEEPINFRA_TOKEN", CANARY)
    assert endpoint("bge-base").provider.name == "deepinfra"


def test_the_bundled_model_and_folders_stay_here_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("BGE_BASE_URL", LOCAL)
    assert type(load_encoder("demo").engine).__name__ == "LocalEngine"


@pytest.mark.parametrize("tail", ["", "/", "/embeddings", "/embeddings/"])
def test_a_base_url_may_be_typed_with_its_endpoint(tail):
    assert endpoint("bge-small", base_url=LOCAL + tail).base_url == LOCAL


@pytest.mark.parametrize("url", [
    "localhost:8080/v1", "gateway.example.com/v1", "ftp://gateway.example.com", "https://", "file:///etc/passwd",
    f"https://user:{CANARY}@gateway.example.com/v1", f"https://gateway.example.com/v1?key={CANARY}",
])  # fmt: skip
def test_a_base_url_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ConfigError, match="base_url") as caught:
        load_encoder("bge-small", base_url=url)
    assert CANARY not in str(caught.value)


def test_a_space_may_be_typed_with_its_endpoint():
    assert endpoint(provider="space", base_url="http://127.0.0.1:9/embed").base_url == "http://127.0.0.1:9"


def test_a_base_url_of_a_known_host_takes_its_record():
    found = endpoint("bge-base", base_url="https://api.deepinfra.com/v1/openai", api_key="k")
    assert (found.provider.name, found.provider.max_inputs) == ("deepinfra", 1024)


def test_an_unknown_provider_is_refused_with_near_names():
    with pytest.raises(UnknownProviderError, match="deepinfra"):
        load_encoder("bge-small", provider="depinfra")


def test_a_server_without_an_address_of_its_own_asks_for_one(monkeypatch):
    with pytest.raises(ConfigError, match="base_url="):
        load_encoder("bge-small", provider="tei")
    monkeypatch.setenv("BGE_BASE_URL", LOCAL)
    assert endpoint("bge-small", provider="tei").base_url == LOCAL


def test_an_address_with_a_hole_is_filled_from_the_environment(monkeypatch):
    with pytest.raises(ConfigError, match="DATABRICKS_HOST"):
        load_encoder("bge-large", provider="databricks")
    monkeypatch.setenv("DATABRICKS_HOST", "https://adb.example.com/")
    monkeypatch.setenv("DATABRICKS_TOKEN", CANARY)
    assert endpoint("bge-large", provider="databricks").base_url == "https://adb.example.com/serving-endpoints"


# ---- the wrong host is refused


def test_api_openai_com_serves_no_bge_model_and_the_error_says_who_does():
    for options in ({"provider": "openai"}, {"base_url": "https://api.openai.com/v1"}):
        with pytest.raises(NotServedError, match=r"api\.openai\.com serves no BGE model.*served by: .*gigarouter"):
            load_encoder("bge-small", api_key="k", **options)


def test_openai_variables_reach_the_gateway_that_they_name(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway.example.com/v1")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    found = endpoint("bge-small", provider="openai")
    assert (found.base_url, found.wire_model, found.key()) == ("https://gateway.example.com/v1", "bge-small", CANARY)


def test_a_withdrawn_offer_is_refused_unless_asked_for():
    with pytest.raises(NotServedError, match=r"withdrew .* on 2026-02-12"):
        load_encoder("bge-large", provider="aimlapi", api_key="k")
    assert endpoint("bge-large", provider="aimlapi", api_key="k", allow_withdrawn=True).wire_model == (
        "BAAI/bge-large-en-v1.5"
    )


def test_a_host_that_pools_otherwise_is_refused_or_gets_a_space_of_its_own(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "abc")
    with pytest.raises(NotServedError, match=r"uses mean pooling.*accept_space='mean'"):
        load_encoder("bge-small", provider="cloudflare", api_key="k")
    accepted = load_encoder("bge-small", provider="cloudflare", api_key="k", accept_space="mean")
    assert accepted.space != load_encoder("bge-small").space
    assert "mean" in accepted.space
    assert accepted.engine.endpoint.wire_model == "@cf/baai/bge-small-en-v1.5"


def test_plain_http_leaves_this_machine_never():
    with pytest.raises(InsecureHostError, match="https"):
        load_encoder("bge-small", base_url="http://gateway.example.com/v1").encode(["a"], role="document")
    for host in ("localhost", "127.0.0.1", "127.8.8.8", "[::1]"):
        load_encoder("bge-small", base_url=f"http://{host}:9/v1")


# ---- what is sent as model


@pytest.mark.parametrize(("typed", "options", "wire"), [
    ("bge-base", {"provider": "openrouter"}, "baai/bge-base-en-v1.5"),
    ("bge-base", {"provider": "deepinfra"}, "BAAI/bge-base-en-v1.5"),
    ("Pro/BAAI/bge-m3", {"provider": "siliconflow"}, "Pro/BAAI/bge-m3"),
    ("bge-m3", {"provider": "siliconflow"}, "BAAI/bge-m3"),
    ("bge-small", {"base_url": LOCAL}, "bge-small"),
    ("Bge-Small-EN-v1.5", {"base_url": LOCAL}, "Bge-Small-EN-v1.5"),
    (None, {"base_url": LOCAL}, "BAAI/bge-small-en-v1.5"),
    ("bge-small", {"base_url": LOCAL, "wire_model": "my-deployment"}, "my-deployment"),
    ("bge-base", {"provider": "deepinfra", "wire_model": "other"}, "other"),
])  # fmt: skip
def test_the_name_on_the_wire(typed, options, wire):
    assert endpoint(typed, api_key="k", **options).wire_model == wire


# ---- keys


def test_a_key_is_the_given_one_then_the_providers_variables_then_ours(monkeypatch):
    def key(**options):
        return endpoint("bge-base", provider="deepinfra", **options).key()

    monkeypatch.setenv("BGE_API_KEY", "ours")
    assert key() == "ours"
    monkeypatch.setenv("DEEPINFRA_API_TOKEN", "second")
    assert key() == "second"
    monkeypatch.setenv("DEEPINFRA_TOKEN", "first")
    assert key() == "first"
    assert key(api_key="given") == "given"
    assert key(api_key=Masked()) == CANARY


def test_both_variables_of_gigarouter_are_read(monkeypatch):
    monkeypatch.setenv("GR_KEY", CANARY)
    assert endpoint("bge-small", provider="gigarouter").key() == CANARY


def test_a_missing_key_is_said_at_first_use_with_the_variables_to_set():
    encoder = load_encoder("bge-base", provider="deepinfra")
    with pytest.raises(MissingKeyError, match="DEEPINFRA_TOKEN or DEEPINFRA_API_TOKEN"):
        encoder.encode(["a"], role="document")


def test_a_bare_address_needs_no_key():
    assert endpoint("bge-small", base_url=LOCAL).key() is None


@pytest.mark.parametrize(("url", "sees"), [
    ("https://api-inference.huggingface.co/models", CANARY), ("https://huggingface.co/x", CANARY),
    ("https://user-bge.hf.space", None), ("https://nothuggingface.co", None),
    ("https://x.eu.endpoints.huggingface.cloud", None),
    ("https://evil.example.com", None), ("https://hf.space.evil.example.com", None), ("http://127.0.0.1:9", None),
])  # fmt: skip
def test_the_hubs_token_goes_to_the_hub_alone(monkeypatch, url, sees):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert endpoint(provider="space", base_url=url).key() == sees


def test_a_providers_key_does_not_follow_another_address(monkeypatch):
    monkeypatch.setenv("DEEPINFRA_TOKEN", CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    assert endpoint("bge-base", base_url="https://gateway.example.com/v1").key() is None


def test_a_key_is_nowhere_to_be_seen(monkeypatch):
    encoder = load_encoder("bge-base", provider="deepinfra", api_key=CANARY, cache=None)
    key = encoder.engine.endpoint.key
    shown = [
        repr(encoder),
        str(encoder),
        repr(key),
        repr(encoder.describe()),
        repr(encoder.stamp()),
        repr(vars(encoder)),
    ]
    shown += [repr(encoder.engine), repr(encoder.engine.endpoint)]
    assert not [text for text in shown if CANARY in text]
    assert CANARY.encode() not in pickle.dumps(encoder)
    assert copy.deepcopy(encoder).key == CANARY
    assert pickle.loads(pickle.dumps(encoder)).key is None
    monkeypatch.setenv("DEEPINFRA_TOKEN", "of the other side")
    assert pickle.loads(pickle.dumps(encoder)).key == "of the other side"


def test_a_key_that_is_not_needed_may_be_missing():
    assert Key(None, (), needed=False, host="h")() is None
    with pytest.raises(MissingKeyError, match="BGE_API_KEY"):
        Key(None, (), needed=True, host="h")()


def test_a_servers_keys_come_from_the_variable_that_is_named(monkeypatch):
    assert keys_from(None) == []
    monkeypatch.setenv("MY_KEYS", " a, b ,,")
    assert keys_from("MY_KEYS") == ["a", "b"]
    monkeypatch.setenv("MY_KEYS", " , ")
    with pytest.raises(MissingKeyError, match="MY_KEYS"):
        keys_from("MY_KEYS")


# ---- wrappers


def cache_file(encoder):
    while encoder is not None and type(encoder).__name__ != "CachedEncoder":
        encoder = getattr(encoder, "inner", None)
    return encoder and encoder.store


def test_a_cache_is_there_when_asked_for_by_call_or_environment(monkeypatch, tmp_path):
    assert cache_file(load_encoder("bge-small")) is None
    assert cache_file(load_encoder("bge-small", cache=tmp_path / "a.sqlite"))
    monkeypatch.setenv("BGE_CACHE", str(tmp_path / "b.sqlite"))
    assert cache_path() == tmp_path / "b.sqlite"
    assert cache_file(load_encoder("bge-small"))
    assert cache_file(load_encoder("bge-small", cache=False)) is None


def test_the_users_cache_lies_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "bge-integrations" / "vectors.sqlite"
    assert not list(tmp_path.iterdir())


def test_wrappers_are_the_same_model_in_the_same_space(tmp_path):
    wrapped = load_encoder("bge-small", cache=tmp_path / "c.sqlite", show_progress=True, query_instruction="find: ")
    plain = load_encoder("bge-small", show_progress=False, query_instruction="find: ")
    assert wrapped.space == plain.space
    assert wrapped.stamp() == plain.stamp()
    assert wrapped.format(["q"], "query") == ["find: q"]
    assert wrapped.engine is not wrapped
    assert plain.engine is plain


def test_putting_together_never_touches_disk_network_or_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in ("demo", "bge-small", "bge-m3", "bge-en-icl", "bge-code-v1"):
            load_encoder(model, cache=tmp_path / "c.sqlite").close()
            load_encoder(model, base_url="https://does-not-exist.invalid/v1").close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="hidden_size"):
        load_encoder(str(tmp_path))


# ---- the table of options


def test_the_table_and_the_type_of_the_keywords_are_one():
    described = re.findall(r"^        (\w+): .+\.$", Options.__doc__, re.MULTILINE)
    assert described == list(OPTIONS)
    assert set(OPTIONS) == set(Options.__annotations__)
    assert set(RERANKER_OPTIONS) == set(RerankerOptions.__annotations__)
    for name, annotation in get_type_hints(Options).items():
        option = OPTIONS[name]
        if option.choices:
            assert get_args(get_args(annotation)[0]) == option.choices
        elif option.type in (str, bool, int, float):
            assert annotation == option.type | None


@pytest.mark.parametrize("load", [load_encoder, load_reranker])
@pytest.mark.parametrize("given", [{"model": ""}, {"model": " "}, {"model_name": ""}])
def test_an_empty_name_is_not_the_default(load, given):
    with pytest.raises(ConfigError, match=r"name is empty|model_name must be a string that is not empty"):
        load(**given)


@pytest.mark.parametrize("given", [{"model": ""}, {"model": "\t"}, {"model_name": ""}])
@pytest.mark.parametrize(
    ("module", "kind"),
    [
        *(("langchain", kind) for kind in ("BGEEmbeddings", "BGEReranker", "BGEM3")),
        *(("llama_index", kind) for kind in ("BGEEmbedding", "BGEReranker", "BGEM3")),
    ],
)
@pytest.mark.parametrize("ready", [False, True])
def test_no_adapter_takes_an_empty_name_for_the_default(module, kind, given, ready):
    adapter = getattr(pytest.importorskip(f"bge_integrations.{module}"), kind)
    if ready and kind != "BGEM3":
        rerank = kind == "BGEReranker"
        given = {**given, "reranker" if rerank else "encoder": (load_reranker if rerank else load_encoder)("demo")}
    with pytest.raises(ConfigError, match=r"empty|model_name"):
        adapter(**given)


@pytest.mark.parametrize("value", ["", "  \n"])
@pytest.mark.parametrize(
    ("load", "table"), [(load_encoder, OPTIONS), (load_reranker, RERANKER_OPTIONS)], ids=["encoder", "reranker"]
)
def test_an_empty_option_is_refused_and_not_left_out(load, table, value):
    strings = [name for name, option in table.items() if option.type in (str, Any)]
    assert {"base_url", "provider", "wire_model", "cache", "tokenizer"} <= set(strings)
    for name in strings:
        with pytest.raises(ConfigError, match=f"^{name} must be .*a string that is not empty"):
            load("demo", **{name: value})


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    for name in ("BGE_MODEL", "BGE_BASE_URL", "BGE_PROVIDER", "BGE_CACHE"):
        monkeypatch.setenv(name, "")
    assert load_encoder().card.id == "BAAI/bge-small-en-v1.5"


def test_every_option_takes_none_and_refuses_an_object_of_no_meaning():
    for name, option in OPTIONS.items():
        load_encoder("bge-small", base_url=LOCAL, **({name: None} if name != "base_url" else {}))
        if option.type is not Any:
            with pytest.raises(ConfigError, match=f"^{name} must be {re.escape(option.wanted)}, not "):
                load_encoder("bge-small", **{"base_url": LOCAL, name: object()})


@pytest.mark.parametrize(("name", "hint"), [
    ("batch_size", "max_inputs="), ("normalize_embeddings", "length 1"), ("openai_api_base", "base_url="),
    ("cache_folder", "HF_HOME"), ("default_headers", "headers="), ("pooling", "accept_space="),
])  # fmt: skip
def test_keywords_of_other_packages_get_a_hint(name, hint):
    with pytest.raises(ConfigError, match=re.escape(hint)):
        load_encoder("demo", **{name: 1})


@pytest.mark.parametrize("value", [{"a": 1}, {1: "a"}, [("a", CANARY)], "a: b", {"a": None}])
def test_headers_of_the_wrong_type_are_refused_without_showing_them(value):
    with pytest.raises(
        ConfigError, match=r"^headers must be a mapping of strings to strings, not of (int|NoneType|str|type)"
    ) as caught:
        load_encoder("bge-small", base_url=LOCAL, headers=value)
    assert CANARY not in str(caught.value)


# ---- a folder stays here


def folder(path, **config):
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"hidden_size": 32, **config}))
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    return path


@pytest.mark.parametrize("variable", [{"BGE_BASE_URL": LOCAL}, {"BGE_PROVIDER": "deepinfra", "DEEPINFRA_TOKEN": "k"}])
def test_a_folder_never_goes_to_the_host_that_the_environment_names(monkeypatch, tmp_path, variable):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = folder(tmp_path / "BAAI" / "bge-base-en-v1.5")
    for typed in (path, str(path), "BAAI/bge-base-en-v1.5", "./BAAI/bge-base-en-v1.5", "~/BAAI/bge-base-en-v1.5"):
        encoder = load_encoder(typed, query_instruction="")
        assert not encoder.remote
        assert encoder.card.dimensions == 32
    with pytest.raises(UnknownModelError, match="is a path"):
        load_encoder(tmp_path / "BAAI" / "bge-small-en-v1.5")
    with pytest.raises(UnknownModelError, match="is a path"):
        load_encoder("/BAAI/bge-small-en-v1.5")
    assert not load_encoder("local:bge-base").remote
    assert load_encoder("bge-base").remote


def test_a_host_that_the_call_names_is_asked_for_the_name_before_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "bge-base")
    assert load_encoder("bge-base", base_url=LOCAL).card == find_model("BAAI/bge-base-en-v1.5")
    assert load_encoder("./bge-base", base_url=LOCAL, query_instruction="").card.dimensions == 32


def test_a_folder_that_does_not_state_its_pooling_warns_unless_the_call_says_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32}))
    with pytest.warns(BGEWarning, match="does not state its pooling.*accept_space='cls'"):
        assert load_encoder(tmp_path, query_instruction="").card.pooling == "mean"
    assert "/cls/" in load_encoder(tmp_path, query_instruction="", accept_space="cls").space


# ---- the space names what is not known to be the model


@pytest.mark.parametrize("wire", ["text-embedding-3-small", "my deployment", "bge-m3", "somebody/bge-base-en-v1.5"])
def test_an_unknown_name_on_the_wire_is_in_the_space(wire):
    card = find_model("bge-base")
    other = load_encoder("bge-base", base_url=LOCAL, wire_model=wire)
    assert other.space != card.space()
    assert other.document_space != card.document_space()
    assert wire in other.space
    assert load_encoder("bge-base", base_url=LOCAL, wire_model=wire, verify="first-use").space == card.space()


@pytest.mark.parametrize("wire", ["BAAI/bge-base-en-v1.5", "bge-base-en-v1.5", "@cf/baai/bge-base-en-v1.5", "BGE-Base"])
def test_a_known_name_on_the_wire_is_the_model(wire):
    assert load_encoder("bge-base", base_url=LOCAL, wire_model=wire).space == find_model("bge-base").space()


def test_a_model_without_published_values_is_not_verified_into_a_space():
    options = {"base_url": LOCAL, "wire_model": "mine", "query_instruction": ""}
    assert "wire:mine" in load_encoder("bge-code-v1", verify="first-use", **options).space


# ---- secrets


@pytest.mark.parametrize("space", ["\n", "\r\n", " ", "\t"])
def test_white_space_around_a_key_is_stripped(monkeypatch, space):
    assert endpoint("bge-small", base_url=LOCAL, api_key=f"{space}{CANARY}{space}").key() == CANARY
    monkeypatch.setenv("BGE_API_KEY", CANARY + space)
    assert endpoint("bge-small", base_url=LOCAL).key() == CANARY
    monkeypatch.setenv("MY_KEYS", f"{CANARY}{space}")
    assert keys_from("MY_KEYS") == [CANARY]


@pytest.mark.parametrize("middle", ["\n", "\r", "\0", "\x7f", "键", "\u2011", "\ud800"], ids=ascii)
def test_a_key_that_no_header_carries_is_refused_without_showing_it(monkeypatch, middle):
    bad = f"sk-{middle}{CANARY}"
    with pytest.raises(ConfigError, match="api_key contains a control or non-ASCII character") as caught:
        load_encoder("bge-small", base_url=LOCAL, api_key=bad)
    assert CANARY not in everything(caught.value)
    if middle not in ("\0", "\ud800"):
        monkeypatch.setenv("BGE_API_KEY", bad)
        with pytest.raises(ConfigError, match="BGE_API_KEY contains") as caught:
            load_encoder("bge-small", base_url=LOCAL)
        assert CANARY not in everything(caught.value)


def everything(error):
    """Return the traceback with the locals of this package's frames, as pytest -l, rich and Sentry show it."""
    frames = [
        frame
        for frame in traceback.StackSummary.extract(
            traceback.walk_tb(error.__traceback__), capture_locals=True, lookup_lines=False
        )
        if "bge_integrations" in frame.filename
    ]
    assert frames
    return "".join(traceback.StackSummary.from_list(frames).format()) + str(frames[0].locals) + str(error)


@pytest.mark.parametrize("wrong", [
    {"model": "no-such-model"}, {"timeout": -1}, {"provider": "nobody"}, {"no_such": 1}, {"base_url": "ftp://x"},
    {"cache": object()}, {"headers": 5}, {"headers": {"X-Key": f"{CANARY}\r"}}, {"headers": {"X Key": CANARY}},
    {"headers": {"X-Key": CANARY, "Upgrade": CANARY}}, {"headers": {"X-Key": CANARY, "X-Other": 5}},
    {"base_url": f"http://me:{CANARY}@127.0.0.1:1/v1"}, {"base_url": f"{LOCAL}?a=1&my-Token={CANARY}"},
], ids=lambda wrong: next(iter(wrong)))  # fmt: skip
@pytest.mark.parametrize(
    "make",
    [load_encoder, BGEEmbeddings, BGEEmbedding, load_reranker, LangChainReranker, LlamaIndexReranker],
    ids=lambda make: f"{make.__module__.split('.')[1]}-{make.__name__}",
)
def test_no_traceback_with_locals_shows_a_secret(make, wrong):
    model = "bge-reranker-base" if "rerank" in make.__name__.lower() else "bge-small"
    options = {"model": model, "base_url": LOCAL, "api_key": CANARY, "headers": {"X-Key": CANARY}, **wrong}
    with pytest.raises((BGEError, TypeError)) as caught:
        make(**options)
    assert CANARY not in everything(caught.value)


UNUSABLE = {
    "proxy": ("https://host.example/v1", {"HTTPS_PROXY": "socks://p.example:1"}),
    "port": ("https://host.example/v1", {"ALL_PROXY": "http://p.example:99999"}),
    "certificates": ("https://host.example/v1", {"SSL_CERT_FILE": "/nowhere/ca.pem"}),
    "header": (LOCAL, {}),
    "down": ("http://127.0.0.1:9/v1", {}),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("how", ["passed", "environment", "function"])
@pytest.mark.parametrize("load", [load_encoder, load_reranker])
def test_no_traceback_of_a_first_call_shows_a_key(case, how, load, monkeypatch):
    url, variables = UNUSABLE[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if how == "environment":
        monkeypatch.setenv("BGE_API_KEY", CANARY)
    key = {"passed": CANARY, "environment": None, "function": lambda: CANARY}[how]
    headers = {"X-Other": CANARY} if case == "header" else {"X-Tenant": "7"}
    dialect = {"dialect": "jina"} if load is load_reranker else {}
    made = load(base_url=url, api_key=key, headers=headers, max_retries=0, **dialect)
    if case == "header":  # its value stays behind, the key in the environment is there
        made = pickle.loads(pickle.dumps(made))
    with pytest.raises(BGEError) as caught:
        made.score("q", ["a"]) if load is load_reranker else made.encode(["a"], role="query")
    assert CANARY not in everything(caught.value)
    assert CANARY not in repr(pickle.loads(pickle.dumps(caught.value)))


def test_an_address_of_the_environment_with_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("BGE_BASE_URL", f"http://me:{CANARY}@127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match="must not hold a password") as caught:
        load_encoder("bge-small")
    assert CANARY not in everything(caught.value)


def test_a_function_that_fails_to_return_a_key_is_named_without_its_words():
    def ask():
        raise RuntimeError(f"the vault has {CANARY}, which expired")

    encoder = load_encoder("bge-small", base_url=LOCAL, api_key=ask)
    with pytest.raises(MissingKeyError, match="passed as api_key= raised RuntimeError") as caught:
        encoder.encode(["a"], role="document")
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(pickle.loads(pickle.dumps(caught.value)))


def test_what_hides_values_can_be_shown_half_made():
    for kind in (Hidden, HiddenValues, SecretHeaders):
        assert repr(kind.__new__(kind)) in ("'***'", "{}")


def test_a_key_may_be_a_function_that_is_asked_each_time():
    keys = iter([f"{CANARY}\n", "second", "bad\nkey", None, 5])
    key = Key(lambda: next(keys), ("BGE_API_KEY",), needed=True, host="h")
    assert key.changes
    assert [key(), key()] == [CANARY, "second"]
    with pytest.raises(ConfigError, match="control or non-ASCII character"):
        key()
    assert key() is None
    with pytest.raises(ConfigError, match="must be a string, not int"):
        key()
    assert "function" not in repr(key)


def test_a_key_that_stayed_behind_says_which_variable_to_set(monkeypatch):
    twin = pickle.loads(pickle.dumps(load_encoder("bge-base", provider="deepinfra", api_key=CANARY)))
    with pytest.raises(MissingKeyError, match="is not sent to other processes: set DEEPINFRA_TOKEN or"):
        twin.encode(["a"], role="document")
    key = Key(CANARY, ("BGE_API_KEY",), needed=False, host="h")
    assert "is the key right" in key.advice
    assert "is not sent" in pickle.loads(pickle.dumps(key)).advice
    assert pickle.loads(pickle.dumps(key))() is None
    monkeypatch.setenv("BGE_API_KEY", "there")
    assert "is the key right" in pickle.loads(pickle.dumps(key)).advice


@pytest.mark.parametrize("url", [
    f"{LOCAL}?api_key=x", f"{LOCAL}?Subscription-Key=x", f"{LOCAL}/embeddings?sig=x", f"{LOCAL}?a=1&access_token=x",
    f"{LOCAL}#x",
])  # fmt: skip
def test_a_key_in_the_query_of_an_address_is_refused(url):
    with pytest.raises(ConfigError, match="a key belongs in api_key="):
        load_encoder("bge-small", base_url=url)


def test_the_query_of_an_address_is_kept():
    found = endpoint("bge-small", base_url=f"{LOCAL}/embeddings/?api-version=2024-10-21")
    assert found.base_url == f"{LOCAL}?api-version=2024-10-21"


# ---- an environment that says little


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), (" TRUE ", True), ("on", True), ("0", False), ("", False), ("no", False)]
)
def test_a_switch_of_the_environment(monkeypatch, value, on):
    monkeypatch.setenv("BGE_ALLOW_HTTP", value)
    assert switched_on("BGE_ALLOW_HTTP") is on


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch):
    monkeypatch.setenv("BGE_ALLOW_HTTP", "maybe")
    with pytest.raises(ConfigError, match="BGE_ALLOW_HTTP must be 1 or 0"):
        load_encoder("bge-small", base_url=LOCAL)


HOMELESS = """
import os, pwd
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
pwd.getpwuid = {}.__getitem__  # a user whom the system does not know, as in many containers
from bge_integrations import ConfigError, load_encoder
from bge_integrations.environment import cache_path
load_encoder("bge-small")
for wrong in (lambda: load_encoder("bge-small", cache=True), cache_path, lambda: load_encoder("~/bge-small"),
              lambda: load_encoder("bge-small", base_url="http://localhost:9/v1", verify="first-use")):
    try:
        wrong()
    except ConfigError as error:
        print("home folder" in str(error) and "set HOME" in str(error))
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere home folders are found in another way")
def test_without_a_home_folder_the_error_says_what_to_set():
    done = subprocess.run([sys.executable, "-c", HOMELESS], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["True"] * 4, done.stderr


# ---- the way to a host


def test_the_way_to_a_host_reaches_the_engine(monkeypatch):
    options = {"headers": {"X-Key": CANARY}, "read_timeout": 5, "api_key": lambda: "k"}
    engine = load_encoder("bge-small", base_url=f"{LOCAL}?api-version=1", **options).engine
    assert dict(engine.endpoint.headers) == {"X-Key": CANARY}
    assert (engine.endpoint.key(), engine.endpoint.key_changes, engine.limits.read_timeout) == ("k", True, 5)
    assert engine.endpoint.base_url.endswith("?api-version=1")
    assert CANARY not in repr(engine.endpoint) + repr(engine)
    plain = {"base_url": "http://10.20.30.40:9/v1"}
    with pytest.raises(InsecureHostError, match="allow_http"):
        load_encoder("bge-small", **plain)
    with pytest.warns(BGEWarning, match="plain http"):
        assert endpoint("bge-small", allow_http=True, **plain).allow_http
    monkeypatch.setenv("BGE_ALLOW_HTTP", "1")
    assert endpoint("bge-small", **plain).allow_http
    with pytest.raises(InsecureHostError):
        load_encoder("bge-small", allow_http=False, **plain)


def test_a_hidden_value_is_shown_and_pickled_nowhere_and_copied():
    hidden = HiddenValues({"X": CANARY})
    assert CANARY not in repr(hidden) + str(vars(hidden))
    assert CANARY.encode() not in pickle.dumps(hidden)
    assert copy.deepcopy(hidden)["X"] == CANARY
