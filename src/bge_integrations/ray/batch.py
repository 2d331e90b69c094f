"""Batches of columns in, the same with vectors out: what Ray Data, Spark and the like call on their workers."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Encoder, Role, Vectors
from ..errors import BadAnswerError, ConfigError, InputError, TooLargeError
from ..load import Options, load_encoder
from ..local.machine import limit_cores

__all__ = ["BGEBatchEncoder", "make_predict_fn"]

_LOADED: dict[str, Encoder] = {}
# One, and the one before it while a worker goes over to another job.
_KEPT = 2


class BGEBatchEncoder:
    """Adds a column of vectors to a batch, on the worker that calls it.

    Created on the driver, where configuration mistakes show at once; pickled without the model, connections and
    keys; the model is loaded on the worker at the first batch, and once per process however many copies arrive there.
    A host's key is read from the worker's own environment.

    Args:
        model: as ``load_encoder`` takes it.
        role: ``"document"`` for the rows of a corpus; ``"query"`` prepends the model's instruction.
        text: the column to embed.
        embedding: the column to add.
        errors: a column to add that says why a row could not be embedded, ``""`` where it could. Such a row's vector
            is NaN, because an array cannot hold None. Without the column, such a row is an error.
        encoder: a ready encoder instead of ``model`` and options.
        **options: as ``load_encoder`` takes them, without ``api_key``.

    Raises:
        ConfigError: an unknown model, provider or option; a key, which is never sent; one column named twice.

    Example:
        >>> import numpy as np
        >>> from bge_integrations.ray import BGEBatchEncoder
        >>> batch = {"id": np.array([7, 8]), "text": np.array(["a text", "another"])}
        >>> BGEBatchEncoder("demo", role="document")(batch)["embedding"].shape
        (2, 256)
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        role: Role,
        text: str = "text",
        embedding: str = "embedding",
        errors: str | None = None,
        encoder: Encoder | None = None,
        **options: Unpack[Options],
    ) -> None:
        if options.get("api_key") is not None:
            raise ConfigError("keys are not sent to workers: set the provider's variable in each worker's environment")
        if len({text, embedding, errors}) < 3:
            raise ConfigError(
                f"text, embedding and errors must be three columns, not {text!r}, {embedding!r}, {errors!r}"
            )
        if encoder is None:
            options.setdefault("show_progress", False)
            encoder = load_encoder(model, **options)
        self.encoder, self.role = encoder, role
        self.text, self.embedding, self.errors = text, embedding, errors
        self._name = uuid.uuid4().hex

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the batch with its vectors: float32, shape (rows, dimensions), rows of length 1, in order.

        Raises:
            ConfigError: the batch has no such text column, or has one of those that are to be added.
            InputError: a row holds no text, and there is no error column; ``positions`` count within the batch.
            HostError: the host failed.
        """
        self._check_columns(batch)
        texts = _texts(batch[self.text])
        if self.errors is None:
            return {**batch, self.embedding: self.encode(texts)}
        vectors, reasons = self._try(texts)
        return {**batch, self.embedding: vectors, self.errors: np.array(reasons, np.str_)}

    def encode(self, texts: Sequence[Any]) -> Vectors:
        """Return the vectors of texts, computed by this process's model.

        Raises:
            InputError: something is not a text, or is blank.
            HostError: the host failed.
        """
        return self.loaded().encode(texts, role=self.role)

    def loaded(self) -> Encoder:
        """Return the encoder of this process, which all copies share."""
        if self._name not in _LOADED:
            _respect_grant()
            while len(_LOADED) >= _KEPT:
                del _LOADED[next(iter(_LOADED))]
            _LOADED[self._name] = self.encoder
        return _LOADED[self._name]

    def _check_columns(self, batch: Mapping[str, NDArray[Any]]) -> None:
        if self.text not in batch:
            raise ConfigError(f"no column {self.text!r} to embed; there are {', '.join(map(repr, batch))}")
        taken = [name for name in (self.embedding, self.errors) if name in batch]
        if taken:
            raise ConfigError(f"the batch already has a column {taken[0]!r}: choose another name")

    def _try(self, texts: list[Any]) -> tuple[Vectors, list[str]]:
        vectors = np.full((len(texts), self.encoder.card.dimensions), np.nan, np.float32)
        reasons = [_reason(text, blank=self.encoder.blank == "keep") for text in texts]
        left = [i for i, reason in enumerate(reasons) if not reason]
        while left:
            finished, error = self._encode_into(vectors, texts, left)
            if error is None:
                break
            # An error without positions concerns the only text that was left, see _of_rows.
            for i in error.positions or (0,):
                reasons[left[i]] = error.message
            left = [i for i in left if i not in finished and not reasons[i]]
        vectors[[i for i, reason in enumerate(reasons) if reason]] = np.nan
        return vectors, reasons

    def _encode_into(
        self, vectors: Vectors, texts: list[Any], rows: list[int]
    ) -> tuple[set[int], InputError | TooLargeError | BadAnswerError | None]:
        finished: set[int] = set()

        def keep(indices: Sequence[int], part: Vectors) -> None:
            places = [rows[i] for i in indices]
            vectors[places] = part
            finished.update(places)

        try:
            vectors[rows] = self.loaded().encode([texts[i] for i in rows], role=self.role, on_batch=keep)
        except (InputError, TooLargeError, BadAnswerError) as error:
            if not _of_rows(error, len(rows)):
                raise
            return finished, error
        return finished, None


def _of_rows(error: InputError | TooLargeError | BadAnswerError, count: int) -> bool:
    named = len(set(error.positions))
    if isinstance(error, InputError):
        return named > 0
    # What concerns all rows is the host's failure and not theirs.
    return 0 < named < count or (count == 1 and isinstance(error, TooLargeError))


def _texts(column: Any) -> list[Any]:
    return list(column.tolist()) if isinstance(column, np.ndarray) else list(column)


def _reason(text: object, *, blank: bool) -> str:
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return "no text"
    if not isinstance(text, str):
        return f"{type(text).__name__}, not text"
    return "" if blank or text.strip() else "blank"


def _respect_grant() -> None:
    """Use no more cores than Ray granted: many workers, each with a thread per core, get in each other's way."""
    ray = sys.modules.get("ray")
    # In the driver the cores are the user's own, whatever Ray was told.
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return
    granted = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    limit_cores(max(1, int(granted)))


def make_predict_fn(
    model: str | None = None, *, role: Role, **options: Unpack[Options]
) -> Callable[[NDArray[Any]], Vectors]:
    """Return a function from a batch of texts to their vectors, for Spark's ``predict_batch_udf``.

    Spark calls this once per Python worker and the result for each batch. Texts must not be null or blank: filter them
    before, since a batch holds nothing by which a row could be named.

    Args:
        model: as ``load_encoder`` takes it.
        role: ``"document"``, or ``"query"`` to prepend the model's instruction.
        **options: as ``load_encoder`` takes them, without ``api_key``: keys are read on the executor.

    Raises:
        ConfigError: an unknown model, provider or option, or a key.

    Example:
        ::

            from functools import partial
            from pyspark.ml.functions import predict_batch_udf
            from pyspark.sql.types import ArrayType, FloatType

            embed = predict_batch_udf(
                partial(make_predict_fn, "bge-small-en-v1.5", role="document"),
                return_type=ArrayType(FloatType()),
                batch_size=1024,
            )
            rows = spark.read.parquet("in/").filter("trim(text) != ''")
            rows.withColumn("embedding", embed("text")).write.parquet("out/")
    """
    return _Predict(BGEBatchEncoder(model, role=role, **options))


class _Predict:
    def __init__(self, encoder: BGEBatchEncoder) -> None:
        self.encoder = encoder

    def __call__(self, texts: NDArray[Any]) -> Vectors:
        return self.encoder.encode(_texts(np.asarray(texts).reshape(-1)))
