"""A Ray dataset in, the same with vectors out, block by block, so that a killed job resumes."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Unpack, overload

from ..core.encoder import Encoder
from ..errors import ConfigError
from ..load import Options
from .batch import BGEBatchEncoder
from .cluster import need_ray, nodes
from .files import Finished, Folder, Writer, find_finished
from .placement import plan_workers

__all__ = ["Written", "embed_dataset"]


class Written(NamedTuple):
    """The result of a job.

    Attributes:
        rows: rows that this call has embedded and written.
        finished: rows that were already in the folder.
        files: files in the folder now.
    """

    rows: int
    finished: int
    files: int


@overload
def embed_dataset(
    ds: Any,
    folder: None = None,
    *,
    model: str | None = None,
    text: str = "text",
    id: str = "id",
    embedding: str = "embedding",
    errors: str | None = None,
    encoder: Encoder | None = None,
    block_rows: int = 5_000,
    workers: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **options: Unpack[Options],
) -> Any: ...


@overload
def embed_dataset(
    ds: Any,
    folder: str,
    *,
    model: str | None = None,
    text: str = "text",
    id: str = "id",
    embedding: str = "embedding",
    errors: str | None = None,
    encoder: Encoder | None = None,
    block_rows: int = 5_000,
    workers: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **options: Unpack[Options],
) -> Written: ...


def embed_dataset(
    ds: Any,
    folder: str | None = None,
    *,
    model: str | None = None,
    text: str = "text",
    id: str = "id",
    embedding: str = "embedding",
    errors: str | None = None,
    encoder: Encoder | None = None,
    block_rows: int = 5_000,
    workers: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **options: Unpack[Options],
) -> Any:
    """Embed the rows of a Ray dataset on all workers of the cluster, and write them if a folder is given.

    The folder's finished files are the checkpoint: each is written atomically, and repeating the call embeds
    only the rows whose ids are in none of them. A kill loses at most ``block_rows`` rows per worker.

    Args:
        ds: a ``ray.data.Dataset``.
        folder: a path or address that all nodes can write, for Parquet files of the dataset's columns and the vectors
            (fixed-size lists of float32), with the encoder's stamp in their schema. Without one, nothing runs yet and
            the dataset with vectors is returned.
        model: as ``load_encoder`` takes it.
        text: the column to embed.
        id: the column of ids, each of which must be there once; only read where there is a folder.
        embedding: the column to add.
        errors: a column to add that says why a row could not be embedded (its vector is NaN); without it, such a row
            ends the job.
        encoder: a ready encoder instead of ``model`` and options.
        block_rows: rows that are embedded and written together.
        workers: how many; by default as many as fit, see ``plan_workers``.
        num_cpus: CPUs that each reserves and computes with.
        num_gpus: GPUs of each; by default one where the cluster has any and the model runs on the workers.
        **options: as ``load_encoder`` takes them, without ``api_key``: keys are read on the workers.

    Returns:
        ``Written`` if there is a folder, else a ``ray.data.Dataset``.

    Raises:
        ConfigError: an unknown model or option, no room in the cluster, or a folder of another job.
        SpaceMismatchError: the folder holds vectors of another space.
        ray.exceptions.RayTaskError: a row or a host failed on a worker; what is finished stays.
    """
    need_ray()
    if block_rows < 1:
        raise ConfigError(f"block_rows must be at least 1, not {block_rows}")
    batches = BGEBatchEncoder(
        model, role="document", text=text, embedding=embedding, errors=errors, encoder=encoder, **options
    )
    crew = plan_workers(
        nodes(), local=not batches.encoder.remote, workers=workers, num_cpus=num_cpus, num_gpus=num_gpus
    )
    if folder is None:
        return _embedded(ds, batches, block_rows, crew)
    place = Folder(folder, id=id, embedding=embedding, stamp=batches.encoder.stamp())
    finished = find_finished(place)
    written = _write(_embedded(_without(ds, finished, id), batches, block_rows, crew), place)
    place.clear()
    return Written(sum(written), finished.rows, finished.files + len(written))


def _without(ds: Any, finished: Finished, id: str) -> Any:
    if not finished.rows:
        return ds
    return ds.map_batches(finished.filter(id), batch_format="pyarrow", batch_size=None)


def _embedded(ds: Any, batches: BGEBatchEncoder, block_rows: int, crew: Any) -> Any:
    import ray

    # Row by row, since Ray's own blocks hold 128 MB: that much would be embedded before the first of it is written.
    return ds.repartition(target_num_rows_per_block=block_rows, strict=True).map_batches(
        _Worker,
        fn_constructor_args=(batches,),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=crew.size, max_size=crew.size),
        num_cpus=crew.cpus,
        num_gpus=crew.gpus,
    )


class _Worker:
    """What Ray Data makes on each worker; the configuration comes from the driver, and with it the driver's choices."""

    def __init__(self, batches: BGEBatchEncoder) -> None:
        self.batches = batches

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.batches(batch)


def _write(ds: Any, place: Folder) -> list[int]:
    # A whole CPU is for reading; a file is written in a moment.
    written = ds.map_batches(Writer(place), batch_format="pyarrow", batch_size=None, num_cpus=0.25)
    with warnings.catch_warnings():
        # Ray Data finds it odd that nothing is left to do.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
        return [int(row["rows"]) for row in written.iter_rows()]
