"""What the workers and drivers of Ray's tests import: less than the tests themselves, since each is a process."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from bge_integrations.bulk import Columns
from bge_integrations.local.machine import usable_cores
from bge_integrations.ray import BGEBatchEncoder
from encoders import HashEncoder

ROWS = 150


class Halting(HashEncoder):
    """Leaves a line in a diary for each text it begins, by process.

    Halts till there is a ``go``: when ``until`` texts were begun, or at the texts from number ``at`` on.
    """

    def __init__(self, diary: Path, until: int = 10**9, at: int = 10**9) -> None:
        super().__init__(batch=5, before_batch=partial(note, str(diary), until, at))


def note(diary: str, until: int, at: int, rows: range, texts: list[str]) -> None:
    folder, end = Path(diary), time.monotonic() + 60
    with (folder / str(os.getpid())).open("a") as file:
        file.write("".join(f"{text}\n" for text in texts))
    late = number(texts[-1]) >= at
    while (late or len(texts_in(folder)) > until) and not folder.with_name("go").exists():
        assert time.monotonic() < end, "nobody said go"
        time.sleep(0.02)


def number(text: str) -> int:
    return int(text.split()[1])


def texts_in(diary: Path) -> list[str]:
    return [text for path in diary.iterdir() for text in path.read_text().splitlines()]


class Alone:
    """Fails where two batches are computed at a time."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __call__(self, rows: range, texts: list[str]) -> None:
        place = Path(self.place)
        place.touch(exist_ok=False)
        time.sleep(0.05)
        place.unlink()


class Deadly:
    def __call__(self, rows: range, texts: list[str]) -> None:
        if "poison" in texts:
            os._exit(1)


def dataset(rows: int = ROWS, blocks: int = 3):
    import ray

    items = [{"id": f"k{i}", "text": f"text {i}", "n": i} for i in range(rows)]
    return ray.data.from_items(items, override_num_blocks=blocks)


def columns():
    return Columns(id="id", keep=("n",))


def cores_of_a_worker() -> tuple[int, int]:
    encoder = BGEBatchEncoder("demo", role="document")
    encoder.encode(["one"])
    return encoder.loaded().describe()["threads"], usable_cores()
