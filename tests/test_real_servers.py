"""LiteLLM's own proxy and llama-cpp-python's own server between our server and our client, where they are installed.

``make real-servers`` makes an environment with both and runs this file; ``BGE_TEST_SERVERS`` names another environment.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import gguf_bert
from bge_integrations import errors, load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # LiteLLM's proxy alone takes a minute to start
TESTS = Path(__file__).parent
OUR_KEY, PROXY_KEY, WRONG_KEY = "sk-ours-1111", "sk-proxy-2222", "sk-wrong-3333"
TEXTS = [
    "a",
    "Line one\nline two",
    "  spaces  ",
    "Ünïcödé, 中文 👩‍👧",
    "How do I list files?",
    *(f"text {i}" for i in range(90)),
]


def python_with(*modules: str) -> str:
    """Return a Python that has these modules, or skip the test."""
    folder = os.environ.get("BGE_TEST_SERVERS")
    python = str(Path(folder, "bin", "python")) if folder else sys.executable
    code = f"import importlib.util as u; raise SystemExit(not all(map(u.find_spec, {modules!r})))"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0
    except OSError as error:
        pytest.fail(f"BGE_TEST_SERVERS={folder!r} names no environment: {error}")
    if not found:
        pytest.skip(f"{' and '.join(modules)} not installed: run `make real-servers`, or set BGE_TEST_SERVERS")
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command, url, log: Path, **environment):
    """Run a server until it answers at ``url``; end it with the block.

    The first test waits for two, within its own limit, which would end it without their logs.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=out, cwd=log.parent, env=os.environ | environment
        )
    try:
        ends = time.monotonic() + 150
        while not answers(url):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < ends, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def answers(url) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


# LiteLLM's proxy in front of `bge serve`


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """Yield the address of the proxy, and that of our server behind it."""
    python = python_with("litellm.proxy.proxy_server", "gunicorn")
    folder, ours, theirs = tmp_path_factory.mktemp("litellm"), free_port(), free_port()
    behind = {"api_base": f"http://127.0.0.1:{ours}/v1", "api_key": OUR_KEY}
    models = [
        {"model_name": "demo", "litellm_params": {"model": "openai/demo", **behind}},
        {"model_name": "wrong-key", "litellm_params": {"model": "openai/demo", **behind, "api_key": WRONG_KEY}},
        {
            "model_name": "gone",
            "litellm_params": {"model": "openai/demo", "api_base": "http://127.0.0.1:9/v1", "api_key": OUR_KEY},
        },
    ]
    config = folder / "config.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": PROXY_KEY}}))
    serve = [sys.executable, "-m", "bge_integrations.cli", "serve", "--model", "demo", "--port", ours]
    serve += ["--api-key-env", "OUR_KEY"]
    litellm = [Path(python).with_name("litellm"), "--config", config, "--host", "127.0.0.1", "--port", theirs]
    with (
        running(
            [*serve, "--api-key-env", "OUR_KEY"],
            f"http://127.0.0.1:{ours}/health",
            folder / "serve.log",
            OUR_KEY=OUR_KEY,
        ),
        running(litellm, f"http://127.0.0.1:{theirs}/health/liveliness", folder / "litellm.log"),
    ):
        yield f"http://127.0.0.1:{theirs}/v1", behind["api_base"]


def through(proxy, key=PROXY_KEY, **options):
    return load_encoder("demo", base_url=proxy[0], api_key=key, **{"timeout": 60, **options})


def test_vectors_through_litellm_are_those_of_our_server(proxy):
    direct = load_encoder("demo", base_url=proxy[1], api_key=OUR_KEY)
    for role in ("document", "query"):
        found = through(proxy).encode(TEXTS, role=role)
        np.testing.assert_allclose(found, direct.encode(TEXTS, role=role), atol=1e-6)
        np.testing.assert_allclose(found, load_encoder("demo").encode(TEXTS, role=role), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"key": WRONG_KEY}, errors.RequestRefusedError),  # 400 "No connected db.": it has no list of keys to look in
        ({"wire_model": "wrong-key"}, errors.AuthenticationError),
        ({"wire_model": "no-such-model"}, errors.RequestRefusedError),
        ({"wire_model": "gone", "max_retries": 0}, errors.HostUnavailableError),
    ],
)
def test_what_litellm_refuses_is_typed_and_shows_no_key(proxy, options, error):
    with pytest.raises(error) as caught:
        through(proxy, **options).encode(["a"], role="document")
    shown = f"{caught.value} {caught.value!r} {pickle.loads(pickle.dumps(caught.value))!r}"
    assert not [key for key in (OUR_KEY, PROXY_KEY, WRONG_KEY) if key in shown], shown


# llama-cpp-python's server


@contextmanager
def llama(folder, pooling):
    python, port = python_with("llama_cpp.server", "gguf"), free_port()
    subprocess.run([python, str(TESTS / "gguf_bert.py"), str(folder / "m.gguf"), pooling], check=True, timeout=60)
    command = [python, "-m", "llama_cpp.server", "--model", folder / "m.gguf", "--embedding", "true", "--port", port]
    limits = ["--n_ctx", gguf_bert.CONTEXT, "--n_batch", gguf_bert.CONTEXT, "--n_ubatch", gguf_bert.CONTEXT]
    with running([*command, *limits, "--api_key", PROXY_KEY], f"http://127.0.0.1:{port}/v1/models", folder / "log"):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    with llama(tmp_path_factory.mktemp("llama"), "CLS") as url:
        yield url


def of_llama(url, key=PROXY_KEY, **options):
    return load_encoder("bge-small-en-v1.5", base_url=url, api_key=key, **{"timeout": 60, **options})


def reference(texts) -> np.ndarray:
    """Return the CLS vectors that transformers computes with the same weights; words of one letter each."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=gguf_bert.TOKENS,
        hidden_size=gguf_bert.HIDDEN,
        num_hidden_layers=gguf_bert.LAYERS,
        num_attention_heads=gguf_bert.HEADS,
        intermediate_size=gguf_bert.INNER,
        max_position_embeddings=gguf_bert.CONTEXT,
    )
    names = {
        "token_embd.": "embeddings.word_embeddings.", "position_embd.": "embeddings.position_embeddings.",
        "token_types.": "embeddings.token_type_embeddings.", "token_embd_norm.": "embeddings.LayerNorm.",
        "blk.": "encoder.layer.", "attn_q.": "attention.self.query.", "attn_k.": "attention.self.key.",
        "attn_v.": "attention.self.value.", "attn_output.": "attention.output.dense.",
        "attn_output_norm.": "attention.output.LayerNorm.", "ffn_up.": "intermediate.dense.",
        "ffn_down.": "output.dense.", "layer_output_norm.": "output.LayerNorm.",
    }  # fmt: skip
    state = {}
    for name, tensor in gguf_bert.weights().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = torch.from_numpy(tensor)
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(state)
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = [2, *(len(gguf_bert.SPECIAL) + gguf_bert.LETTERS.index(letter) for letter in text.split()), 3]
            rows.append(
                torch.nn.functional.normalize(model(torch.tensor([ids])).last_hidden_state[0, 0], dim=0).numpy()
            )
    return np.stack(rows)


def test_vectors_of_llama_cpp_python_are_those_of_the_weights(pooled):
    longest = " ".join("abcdef" * 21)  # and two special tokens: 128
    texts = ["a", "a b c", "7 z", longest, *(" ".join(f"{i:03}") for i in range(80))]
    found = of_llama(pooled).encode(texts, role="document")
    np.testing.assert_allclose(found, reference(texts), atol=1e-3)


def tokenizer(folder: Path) -> str:
    """Write a tokenizer.json of the words in the gguf file."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [*gguf_bert.SPECIAL, *gguf_bert.LETTERS, *(f"##{letter}" for letter in gguf_bert.LETTERS)]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_what_llama_cpp_python_cuts_off_in_silence_is_told(pooled, tmp_path):
    encoder = of_llama(pooled, tokenizer=tokenizer(tmp_path))
    short, long = " ".join("abcdef" * 21), " ".join("ghijkl" * 50)  # 128 tokens, all that it reads, and 302
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([short, "a b"], role="document")
    with pytest.warns(errors.TruncationWarning, match="it truncates texts that"):
        found = encoder.encode(["a b c", long], role="document")
    read = reference([" ".join(long.split()[: gguf_bert.CONTEXT - 2])])[0]
    assert found[1] @ read > 0.9  # the beginning of the text, with or without [SEP]
    strict = of_llama(pooled, tokenizer=str(tmp_path), truncate="error")
    strict.encode(["a b"], role="document")  # once it has counted as we do, its count is believed
    with pytest.raises(errors.TooLargeError) as caught:
        strict.encode(["a b c", long, "d"], role="document")
    assert caught.value.positions == (1,)


def test_a_key_that_llama_cpp_python_refuses(pooled):
    with pytest.raises(errors.AuthenticationError) as caught:
        of_llama(pooled, WRONG_KEY).encode(["a"], role="document")
    assert WRONG_KEY not in str(caught.value)


def test_an_address_without_its_v1_says_so(pooled):
    with pytest.raises(errors.RequestRefusedError, match="does base_url= lack its /v1"):
        of_llama(pooled.removesuffix("/v1")).encode(["a"], role="document")


def test_a_model_of_another_size_is_refused(pooled):
    other = load_encoder("bge-base-en-v1.5", base_url=pooled, api_key=PROXY_KEY, timeout=60)
    with pytest.raises(errors.BadAnswerError, match="dimensions"):
        other.encode(["a", "b"], role="document")


def test_vectors_by_token_are_refused_and_the_message_says_pooling(tmp_path):
    with llama(tmp_path, "NONE") as url, pytest.raises(errors.BadAnswerError, match="the server must pool"):
        of_llama(url).encode(["a b c", "d e"], role="document")
