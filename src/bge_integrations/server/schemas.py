"""The bodies of requests and responses, and the OpenAPI document made of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError

from ..catalog.records import ModelCard
from .limits import Limits
from .responses import OPENAI_PREFIX, TRUNCATED_HEADER


def _embeddable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "the text is blank: leave it out")
    return whole(text)


def whole(text: str) -> str:
    """Return a text that UTF-8 can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "the text has a lone surrogate, which is not a character") from error
    return text


Text = Annotated[str, AfterValidator(_embeddable)]


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int | list) and not isinstance(first, bool):
        raise PydanticCustomError("token_ids", _TOKEN_IDS)
    return value


_TOKEN_IDS = (
    "token ids are refused, because they come from another tokenizer: send strings "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)
# Python counts four separators and NEL as blank, ECMA-262 does not.
_ITEM = {"type": "string", "minLength": 1, "pattern": r"[^\s\u001c-\u001f\u0085]"}


def _schema(**bounds: int) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [_ITEM, {"type": "array", "items": _ITEM, **bounds}]})


# One text arrives as a list of one; as a union of types, each mistake would be reported twice.
Texts = Annotated[list[Text], Field(fail_fast=True), BeforeValidator(_as_list), _schema()]
SomeTexts = Annotated[list[Text], Field(fail_fast=True, min_length=1), BeforeValidator(_as_list), _schema(minItems=1)]


class Strict(BaseModel):
    """Refuses unknown fields: a misspelt ``is_query`` must not go unnoticed."""

    model_config = ConfigDict(extra="forbid")


class EmbedRequest(Strict):
    """Texts to embed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"texts": ["What is BGE?"], "normalize": True, "is_query": True}]},
    )

    texts: Texts = Field(description="One text or a list of texts, without any instruction.")
    normalize: StrictBool = Field(
        default=True,
        description="Accepted either way. A BGE model ends in a normalisation layer, so its vectors have length 1 "
        "whether or not the caller asks for it, here as in sentence-transformers.",
    )
    is_query: StrictBool = Field(default=False, description="Prepends the model's query instruction to each text.")
    outputs: list[Literal["dense", "sparse", "multivector"]] | None = Field(
        default=None, min_length=1, description="Which of the model's outputs to return; only dense by default."
    )


class EmbedResponse(BaseModel):
    """One row per text, in order, of each output that was asked for."""

    embeddings: list[list[float]] | None = Field(default=None, description="Vectors of length 1, if requested.")
    sparse: list[dict[str, float]] | None = Field(default=None, description="Token ids and their weights.")
    multivector: list[list[list[float]]] | None = Field(default=None, description="A vector of length 1 per token.")
    model: str
    dimension: int


class EmbedSparseRequest(Strict):
    """TEI's request for sparse vectors."""

    inputs: SomeTexts = Field(description="One text or a list of texts, without any instruction.")
    truncate: StrictBool | None = Field(default=None, description="false refuses texts that are too long.")
    truncation_direction: Literal["Right", "right"] | None = Field(default=None, description="Texts lose their end.")
    prompt_name: Literal["query", "document"] | None = Field(
        default=None, description="query prepends the model's instruction."
    )


class SparseValue(BaseModel):
    """A token id and its weight."""

    index: int
    value: float


class EmbeddingsRequest(Strict):
    """OpenAI's request, and ``input_type`` besides."""

    input: SomeTexts = Field(description="One text or a list of texts. Token ids are refused.")
    model: str = Field(description="The model that is served, by any of its names; GET /v1/models lists it.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(
        default=None, description="The model's own number, if any; BGE's vectors cannot be shortened."
    )
    user: str | None = Field(default=None, description="Accepted and ignored.")
    input_type: Literal["query", "document"] | None = Field(
        default=None,
        description="query prepends the model's instruction; document is the default, because plain OpenAI clients "
        "put instructions in themselves.",
    )


class Embedding(BaseModel):
    """One vector, as numbers or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TokenUsage(BaseModel):
    """Tokens that the model read: instruction and special tokens included, up to its limit."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's response."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class TokensRequest(Strict):
    """Texts to count."""

    texts: Texts
    is_query: StrictBool = False


class TokensResponse(BaseModel):
    """Tokens of each text and, where it is over ``max_tokens``, the number of its characters that the model reads."""

    counts: list[int] | None
    max_tokens: int
    read_characters: list[int | None]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"]
    model: str
    model_loaded: bool


class Detail(BaseModel):
    """What went wrong."""

    detail: str | list[dict[str, Any]]


class OpenAIErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """OpenAI's error response."""

    error: OpenAIErrorBody


def errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of the routes that embed, in OpenAI's shape or the other one."""
    statuses = [400, 404, 408, 413, 415, 429, 502, 503, 504] if model is OpenAIError else _STATUSES
    return {status: {"model": model} for status in statuses}


_STATUSES = [400, 408, 413, 415, 422, 429, 502, 503, 504]


def complete_document(
    document: dict[str, Any], card: ModelCard, limits: Limits, *, locked: bool, open_paths: Collection[str]
) -> None:
    """Add to the OpenAPI document what depends on the model, the limits and the keys."""
    _state_model(document["components"]["schemas"], card, limits)
    truncated = {"description": "Positions of texts longer than the model reads.", "schema": {"type": "string"}}
    for path in {"/embed", "/embed_sparse", "/v1/embeddings"} & document["paths"].keys():
        document["paths"][path]["post"]["responses"]["200"]["headers"] = {TRUNCATED_HEADER: truncated}
    if locked:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            if path not in open_paths:
                _lock(path, operations)


def _state_model(schemas: dict[str, Any], card: ModelCard, limits: Limits) -> None:
    openai = schemas["EmbeddingsRequest"]
    openai["examples"] = [{"model": card.id, "input": ["What is BGE?"]}]
    openai["properties"]["dimensions"]["anyOf"][0] = {"type": "integer", "const": card.dimensions}
    openai["properties"]["input"]["description"] += f" At most {limits.items} texts."
    schemas["EmbedRequest"]["properties"]["outputs"]["anyOf"][0]["items"]["enum"] = list(card.outputs)
    lists = [("EmbedRequest", "texts"), ("TokensRequest", "texts"), ("EmbedSparseRequest", "inputs")]
    for name, field in lists:
        if name in schemas:
            schemas[name]["properties"][field]["anyOf"][1]["maxItems"] = limits.items


def _lock(path: str, operations: dict[str, Any]) -> None:
    shape = "OpenAIError" if path.startswith(OPENAI_PREFIX) else "Detail"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    for operation in operations.values():
        operation["security"] = [{"key": []}]
        operation["responses"]["401"] = {"description": "Missing or invalid API key.", "content": content}
