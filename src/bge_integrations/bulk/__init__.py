"""Embed any number of rows into files, in bounded memory, so that a killed job goes on where it was."""

from .job import Report, embed_files, plan_files

__all__ = ["Report", "embed_files", "plan_files"]
