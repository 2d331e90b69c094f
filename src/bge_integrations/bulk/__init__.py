"""Embed any number of rows into files, in bounded memory, so that a killed job goes on where it was."""

from .into import Loaded, load_files
from .job import Report, embed_files
from .plan import Plan, plan_files
from .rows import Columns
from .search import Hit, encoder_of, search_files
from .shards import Part, read_shards, stamp_of

__all__ = [
    "Columns",
    "Hit",
    "Loaded",
    "Part",
    "Plan",
    "Report",
    "embed_files",
    "encoder_of",
    "load_files",
    "plan_files",
    "read_shards",
    "search_files",
    "stamp_of",
]
