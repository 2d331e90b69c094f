"""The bodies of requests and answers, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError


def _embeddable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "the text is blank: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "the text holds a lone surrogate, which is no character") from error
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
    "token ids are not understood, since they are another tokenizer's: send strings "
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
    """A field that is not known is refused: a misspelt ``is_query`` must not go unnoticed."""

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
    is_query: StrictBool = Field(default=False, description="Puts the model's query instruction in front of each text.")


class EmbedResponse(BaseModel):
    """One vector per text, in order."""

    embeddings: list[list[float]]
    model: str
    dimension: int


class EmbeddingsRequest(Strict):
    """OpenAI's request, and ``input_type`` besides."""

    input: SomeTexts = Field(description="One text or a list of texts. Token ids are refused.")
    model: str = Field(description="The model that is served, by any of its names; GET /v1/models lists it.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, description="The model's own, if given: BGE's are not to be cut.")
    user: str | None = Field(default=None, description="Accepted and ignored.")
    input_type: Literal["query", "document"] | None = Field(
        default=None,
        description="query puts the model's instruction in front; document is the default, as plain OpenAI clients "
        "put instructions in themselves.",
    )


class Embedding(BaseModel):
    """One vector, as numbers or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TokenUsage(BaseModel):
    """Tokens that the model read: instruction and special tokens included, cut at its limit."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's answer."""

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
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """OpenAI's error."""

    error: OpenAIErrorBody
