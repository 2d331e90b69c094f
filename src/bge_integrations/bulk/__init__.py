"""Embed any number of rows into files, in bounded memory, so that a killed job is resumed."""

from .duplicates import Duplicate, DuplicateGroup, near_duplicates
from .embed import embed_files
from .folder import read_shards, stamp_of
from .hybrid import Hybrid
from .part import Part, SparseRows
from .plan import Plan, estimate, plan_files
from .quantise import dequantise, quantise, value_ranges
from .quantised_shards import Quantised, quantise_files
from .report import Report
from .rows import Columns
from .search import Hit, encoder_of, search_files
from .upload import Loaded, load_files, upload_files

__all__ = [
    "Columns",
    "Duplicate",
    "DuplicateGroup",
    "Hit",
    "Hybrid",
    "Loaded",
    "Part",
    "Plan",
    "Quantised",
    "Report",
    "SparseRows",
    "dequantise",
    "embed_files",
    "encoder_of",
    "estimate",
    "load_files",
    "near_duplicates",
    "plan_files",
    "quantise",
    "quantise_files",
    "read_shards",
    "search_files",
    "stamp_of",
    "upload_files",
    "value_ranges",
]
