"""Embed any number of rows into files, in bounded memory, so that a killed job is resumed."""

from .estimate import Plan, plan_files
from .folder import read_shards, stamp_of
from .hybrid import Hybrid
from .job import embed_files
from .part import Part, SparseRows
from .report import Report
from .rows import Columns
from .search import Hit, encoder_of, search_files
from .upload import Loaded, load_files, upload_files

__all__ = [
    "Columns",
    "Hit",
    "Hybrid",
    "Loaded",
    "Part",
    "Plan",
    "Report",
    "SparseRows",
    "embed_files",
    "encoder_of",
    "load_files",
    "plan_files",
    "read_shards",
    "search_files",
    "stamp_of",
    "upload_files",
]
