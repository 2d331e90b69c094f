"""Embed any number of rows into files, in bounded memory, so that a killed job goes on where it was."""

from .job import Report, embed_files
from .plan import Plan, plan_files
from .rows import Columns
from .shards import Part, read_shards, stamp_of

__all__ = ["Columns", "Part", "Plan", "Report", "embed_files", "plan_files", "read_shards", "stamp_of"]
