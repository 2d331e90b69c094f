"""bge-m3's sparse and multivector output at hosts: per dialect, what is sent and how the answer is read.

A protocol's parts are asked in turn until all that is wanted is there: vLLM gives weights and token vectors at one path
each, DeepInfra all in one answer. What no part gives is asked for as any dense vector is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...catalog.records import OutputName
from ...errors import BadAnswerError
from ..vectors import check_count
from .output_wire import (
    Names,
    OutputAnswer,
    OutputPart,
    OutputProtocol,
    OutputRequest,
    data_of,
    rows_of,
    sparse_rows,
    tokens_of,
)

__all__ = ["OUTPUT_PROTOCOLS", "parse_tokens", "tokens_payload"]


# ---- vLLM: https://docs.vllm.ai/en/latest/models/pooling_models.html (BAAI/bge-m3)


def pooling_payload(task: str) -> Callable[[OutputRequest], dict[str, Any]]:
    """Return what builds a ``/pooling`` request of a task."""

    def payload(request: OutputRequest) -> dict[str, Any]:
        return {"model": request.model, "task": task, "input": request.texts, "encoding_format": "float"}

    return payload


def parse_weights(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return one weight per token of each text, which vLLM may write as lists of one.

    Raises:
        BadAnswerError: no such rows, or a wrong number of them.
    """
    rows = data_of(answer, len(request.texts), "data")
    flat = [_flat(row, position) for position, row in enumerate(rows)]
    return OutputAnswer({"sparse": flat}, answer.get("model"), tokens_of(answer))


def _flat(row: Any, position: int) -> list[Any]:
    if not hasattr(row, "__len__") or isinstance(row, (str, Mapping)):
        raise BadAnswerError(f"text {position} has no list of weights", positions=[position])
    weights = [entry[0] if hasattr(entry, "__len__") and len(entry) == 1 else entry for entry in row]
    if any(hasattr(weight, "__len__") for weight in weights):
        raise BadAnswerError(f"text {position} has vectors in place of weights", positions=[position])
    return [float(weight) if hasattr(weight, "dtype") else weight for weight in weights]


def parse_vectors(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return one vector per token of each text.

    Raises:
        BadAnswerError: no such rows, or a wrong number of them.
    """
    rows = data_of(answer, len(request.texts), "data")
    return OutputAnswer({"multivector": rows}, answer.get("model"), tokens_of(answer))


def tokens_payload(model: str, text: str) -> dict[str, Any]:
    """Return a ``/tokenize`` request, which takes one text."""
    return {"model": model, "prompt": text, "add_special_tokens": True}


def parse_tokens(answer: Any) -> list[int]:
    """Return the ids of ``/tokenize``.

    Raises:
        BadAnswerError: they are no list of ids.
    """
    ids = answer.get("tokens") if isinstance(answer, Mapping) else None
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise BadAnswerError("/tokenize returned no list of token ids", retryable=isinstance(answer, Mapping))
    return ids


# vllm-project/vllm tests/plugins/bge_m3_sparse_plugin

_EMBED_TASKS: dict[Names, str] = {("dense",): "dense", ("sparse",): "sparse", ("dense", "sparse"): "dense&sparse"}


def plugin_payload(request: OutputRequest) -> dict[str, Any]:
    """Return the request of vLLM's bge-m3 plugin."""
    data = {"input": request.texts, "embed_task": _EMBED_TASKS[request.names], "return_tokens": False}
    return {"model": request.model, "task": "plugin", "data": data}


def parse_plugin(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return what the plugin gives for each text: ``data.data[] {index, dense_embedding, sparse_embedding}``.

    Raises:
        BadAnswerError: no such rows, or a wrong number of them.
    """
    inner = answer.get("data") if isinstance(answer, Mapping) else None
    columns: dict[str, list[Any]] = {}
    for name in request.names:
        rows = data_of(inner, len(request.texts), f"{name}_embedding")
        columns[name] = sparse_rows(rows) if name == "sparse" else rows
    return OutputAnswer(columns, answer.get("model"), tokens_of(inner) if isinstance(inner, Mapping) else 0)


# ---- all in one answer

_DEEPINFRA: dict[OutputName, tuple[str, str]] = {
    "dense": ("dense", "embeddings"),
    "sparse": ("sparse", "sparse"),
    "multivector": ("colbert", "colbert"),
}


def _all_in_one(answer: Any, request: OutputRequest, fields: Mapping[OutputName, str]) -> OutputAnswer:
    columns: dict[str, list[Any]] = {}
    for name in request.names:
        rows = rows_of(answer, fields[name], len(request.texts))
        columns[name] = sparse_rows(rows) if name == "sparse" else rows
    return OutputAnswer(columns, answer.get("model"), tokens_of(answer))


def deepinfra_payload(request: OutputRequest) -> dict[str, Any]:
    """Return the request of DeepInfra's bge-m3-multi."""
    wishes = {wish: name in request.names for name, (wish, _) in _DEEPINFRA.items()}
    return {"inputs": request.texts, **wishes}


def parse_deepinfra(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return ``embeddings``, ``sparse`` (maps, or one number per id of the vocabulary) and ``colbert``.

    Raises:
        BadAnswerError: one of them is missing, or has a wrong number of rows.
    """
    return _all_in_one(answer, request, {name: field for name, (_, field) in _DEEPINFRA.items()})


_BGE: dict[OutputName, str] = {"dense": "embeddings", "sparse": "sparse", "multivector": "multivector"}


def bge_payload(request: OutputRequest) -> dict[str, Any]:
    """Return the request of ``bge serve``; the instruction of a query is in its text already."""
    return {"texts": request.texts, "is_query": False, "outputs": list(request.names)}


def parse_bge(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return ``embeddings``, ``sparse`` and ``multivector``.

    Raises:
        BadAnswerError: one of them is missing, or has a wrong number of rows.
    """
    return _all_in_one(answer, request, _BGE)


# ---- sparse rows in the place of dense ones


def maps_payload(**more: Any) -> Callable[[OutputRequest], dict[str, Any]]:
    """Return what builds OpenAI's request with these fields more."""

    def payload(request: OutputRequest) -> dict[str, Any]:
        return {"model": request.model, "input": request.texts, **more}

    return payload


def parse_maps(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return ``data[].embedding``, each a map of token ids to weights.

    Raises:
        BadAnswerError: dense vectors came, or a wrong number of rows.
    """
    rows = data_of(answer, len(request.texts), "embedding")
    if rows and not any(isinstance(row, Mapping) for row in rows):
        raise BadAnswerError("dense vectors were returned in place of maps of token ids to weights")
    return OutputAnswer({"sparse": sparse_rows(rows)}, answer.get("model"), tokens_of(answer))


def tei_payload(request: OutputRequest) -> dict[str, Any]:
    """Return TEI's ``/embed_sparse`` request."""
    return {"inputs": request.texts, "truncate": True}


def parse_tei(answer: Any, request: OutputRequest) -> OutputAnswer:
    """Return ``[[{index, value}]]``, one list per text.

    Raises:
        BadAnswerError: no such lists, or a wrong number of them.
    """
    if not isinstance(answer, list):
        raise BadAnswerError("the response is not a list of sparse vectors")
    check_count(answer, len(request.texts))
    return OutputAnswer({"sparse": sparse_rows(answer)})


_ALL: Names = ("dense", "sparse", "multivector")

OUTPUT_PROTOCOLS: dict[str, OutputProtocol] = {
    protocol.name: protocol
    for protocol in (
        OutputProtocol(
            "vllm",
            _ALL,
            (
                OutputPart(("sparse",), "/pooling", pooling_payload("token_classify"), parse_weights),
                OutputPart(("multivector",), "/pooling", pooling_payload("token_embed"), parse_vectors),
            ),
            "vLLM returns them when started with --runner pooling --hf-overrides "
            """'{"architectures": ["BgeM3EmbeddingModel"]}'""",
            weighs_tokens=True,
        ),
        OutputProtocol(
            "vllm-plugin",
            ("dense", "sparse"),
            (OutputPart(("dense", "sparse"), "/pooling", plugin_payload, parse_plugin),),
            "vLLM returns it with its bge_m3_sparse_plugin installed and --io-processor-plugin bge_m3_sparse_plugin",
        ),
        OutputProtocol(
            "deepinfra",
            _ALL,
            (OutputPart(_ALL, "/v1/inference/{model}-multi", deepinfra_payload, parse_deepinfra),),
            "DeepInfra returns them as BAAI/bge-m3-multi",
            max_inputs=16,  # a sparse row may be 250,002 numbers
        ),
        OutputProtocol(
            "xinference",
            ("dense", "sparse"),
            (OutputPart(("sparse",), "/v1/embeddings", maps_payload(return_sparse=True), parse_maps),),
            "Xinference returns it when the model was launched with the engine 'flag' and return_sparse=True",
        ),
        OutputProtocol(
            "sglang",
            ("sparse",),
            (OutputPart(("sparse",), "/v1/embeddings", maps_payload(), parse_maps),),
            "SGLang returns sparse output only, when started with SGLANG_EMBEDDINGS_SPARSE_HEAD=sparse_linear.pt",
            keeps_special=True,
        ),
        OutputProtocol(
            "tei",
            ("dense", "sparse"),
            (OutputPart(("sparse",), "/embed_sparse", tei_payload, parse_tei),),
            "Text Embeddings Inference itself supports only SPLADE pooling, which belongs to other "
            "models (https://github.com/huggingface/text-embeddings-inference/issues/141)",
            max_inputs=32,
        ),
        OutputProtocol(
            "bge",
            _ALL,
            (OutputPart(_ALL, "/embed", bge_payload, parse_bge),),
            "`bge serve --model bge-m3` returns them",
        ),
    )
}
