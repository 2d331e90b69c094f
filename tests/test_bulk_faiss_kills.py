"""A FAISS folder after a kill at any moment of its save: vectors and texts of one state, or no index."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("langchain_community.docstore.in_memory")

from bge_integrations.bulk.part import Part
from bge_integrations.bulk.upload import faiss_folder
from bge_integrations.bulk.upload.faiss_folder import open_target
from bge_integrations.bulk.upload.target import Place, UploadBatch
from bge_integrations.errors import ConfigError
from bge_integrations.stamps.faiss_folder import read_faiss
from encoders import hash_vectors
from interleaving import at_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

OLD = {f"k{i}": f"text {i}" for i in range(5)}
NEW = {**{f"k{i}": f"text {i}" for i in range(1, 5)}, "k5": "text 5"}  # as many rows, each at another place
SAVE = {faiss_folder._Target.save.__code__, faiss_folder._complete.__code__}


def write(place, texts):
    """Bring the index to a state, as an upload does."""
    with open_target(place) as target:
        held = [key for page in target.held() for key, _ in page]
        target.delete([key for key in held if key not in texts])
        new = {key: text for key, text in texts.items() if key not in held}
        if new:
            vectors = hash_vectors(list(new.values()), place.dimensions)
            target.put(UploadBatch(Part(list(new), list(new.values()), vectors, {})))


def held(folder):
    """Return the texts by id; each must stand beside its own vector."""
    saved = read_faiss(folder)
    texts = {key: saved.documents[key].page_content for key in saved.ids}
    found = saved.index.reconstruct_n(0, saved.index.ntotal)
    assert np.array_equal(found, hash_vectors(list(texts.values()), saved.index.d))
    return texts


def killed_at(step, place, texts):
    """Write in a child that ends without a word at one call of the save; return whether it came to that."""
    child = os.fork()
    if child == 0:
        with at_step(step, SAVE, lambda: os._exit(9), kind="CALL"):
            write(place, texts)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("before", [OLD, {}], ids=["an update", "a first upload"])
def test_killed_at_any_call_of_the_save(before, tmp_path):
    outcomes = []
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        place = Place("index", 16, folder, path=str(folder))
        if before:
            write(place, before)
        killed = killed_at(step, place, NEW)
        try:
            outcomes.append("new" if held(folder) == NEW else "old")
        except ConfigError:
            outcomes.append("none")
        with open_target(place) as target:
            there = {key: text for page in target.held() for key, text in page}
            assert there in (before, NEW)
            assert outcomes[-1] == "none" or there == held(folder)
        write(place, NEW)
        assert held(folder) == NEW
        if not killed:
            break
    assert outcomes[-1] == "new"
    assert {"old" if before else "none", "new"} <= set(outcomes)
    assert len(outcomes) > 8


def test_texts_that_cannot_be_written_leave_the_old_state(tmp_path):
    class Unwritable(dict):
        def __reduce__(self):
            raise OSError(errno.ENOSPC, "no room")

    place = Place("index", 16, tmp_path, path=str(tmp_path))
    write(place, OLD)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    import faiss

    target = faiss_folder._read(faiss, tmp_path, place)
    target.delete(["k0"])
    target.documents = Unwritable(target.documents)
    with pytest.raises(OSError, match="no room"):
        target.save("index")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert held(tmp_path) == OLD
