"""A Ray cluster: joining it, and having its workers embed the shards of a bulk job."""

from __future__ import annotations

import logging
import socket
import warnings
from typing import Any

from ..bulk.pipeline import EmbeddedShard, EncoderShards, OnError, OnRows, ShardEmbedder
from ..bulk.rows import Row
from ..core.encoder import Encoder
from ..errors import BGEError, ConfigError, HostUnavailableError
from ..extras import require
from .batch import BGEBatchEncoder
from .placement import plan_tasks

__all__ = ["RayShards", "connect", "need_ray", "nodes"]

# A text that ends its worker each time must not do so for ever.
_ATTEMPTS = 5
_KNOCK = 10.0  # seconds


def need_ray() -> None:
    """Check that Ray Data is installed.

    Raises:
        MissingExtraError: it is not.
    """
    require("ray.data", extra="ray")


def connect(address: str | None = None) -> None:
    """Join a cluster, or start one on this machine if none is given here or in ``RAY_ADDRESS``.

    Args:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster answers there.
    """
    need_ray()
    import ray

    if ray.is_initialized():
        return
    try:
        # Ray itself tries for minutes where nobody listens.
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host, int(port)), _KNOCK).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address or 'RAY_ADDRESS'!r}: {error}") from error


def nodes() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    import ray

    connect()
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class RayShards(ShardEmbedder):
    """Embeds the shards of a bulk job on a Ray cluster, each on a free worker.

    Rows are read and written on this machine, so nothing but the cluster has to be shared; ``embed_dataset`` is for
    data too large for one machine to read or write. A shard whose worker or machine is lost is recomputed
    elsewhere. Each worker applies the limits of requests and tokens per minute on its own.

    Args:
        encoder: pickled without model and keys; a cache is kept on each worker's machine.
        address: as ``connect`` takes it.
        sparse: whether to compute sparse vectors as well.
        workers: shards at a time; by default as many as fit.
        num_cpus: CPUs of each, and its threads; by default 1.
        num_gpus: GPUs of each; by default 1 where the cluster has any and the model runs on the workers.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster answers there, or the workers do not fit.

    Example:
        >>> from functools import partial
        >>> embed_files("in.jsonl", "out/", encoder, on=partial(RayShards, workers=8))  # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder,
        address: str | None = None,
        *,
        sparse: bool = False,
        workers: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
    ) -> None:
        connect(address)
        import ray

        plan = plan_tasks(nodes(), local=not encoder.remote, workers=workers, num_cpus=num_cpus, num_gpus=num_gpus)
        self.encoder, self.lanes, self.sparse = encoder, plan.size, sparse
        # Without max_calls=0, Ray ends a worker process, and its loaded model, after each task that had a GPU.
        self._task = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=_ATTEMPTS, max_calls=0)(_embed)
        self._batches = ray.put(BGEBatchEncoder(role="document", encoder=encoder))
        self._running: set[Any] = set()

    def embed(self, rows: list[Row], on_error: OnError, on_rows: OnRows) -> EmbeddedShard:
        """Let a worker embed a shard, and wait for it.

        Raises:
            BGEError: as it was raised on the worker.
            HostUnavailableError: the worker was lost repeatedly.
        """
        import ray

        reference = self._task.remote(self._batches, rows, on_error, self.sparse)
        self._running.add(reference)
        try:
            answer: tuple[EmbeddedShard, dict[str, float]] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, BGEError) else self._lost(rows, error) from error
        except ray.exceptions.RayError as error:
            raise self._lost(rows, error) from error
        finally:
            self._running.discard(reference)
        embedded, used = answer
        self.encoder.usage.add(**used)
        on_rows(len(embedded.vectors))
        return embedded

    def _lost(self, rows: list[Row], error: Exception) -> BGEError:
        return HostUnavailableError(
            f"the cluster could not embed lines {rows[0].line} of {rows[0].source!r} to {rows[-1].line} of "
            f"{rows[-1].source!r}: {str(error).strip():.500}",
            provider="ray",
            model=self.encoder.card.id,
        )

    def stop(self) -> None:
        """Cancel the running tasks."""
        import ray

        for reference in tuple(self._running):
            ray.cancel(reference)


def _embed(
    batches: BGEBatchEncoder, rows: list[Row], on_error: OnError, sparse: bool
) -> tuple[EmbeddedShard, dict[str, float]]:
    """Run on a worker."""
    encoder = batches.loaded()
    before = encoder.usage.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver says it, once for all shards
        embedded = EncoderShards(encoder, sparse=sparse).embed(rows, on_error, lambda _: None)
    after = encoder.usage.to_dict()
    return embedded, {name: after[name] - (before[name] or 0) for name in after if after[name] and name != "seconds"}
