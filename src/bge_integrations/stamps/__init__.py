"""Stamps: which space the vectors of a store belong to, written into the store itself."""

from .stamp import check_stamp, check_store, read_stamp, stamp_store

__all__ = ["check_stamp", "check_store", "read_stamp", "stamp_store"]
