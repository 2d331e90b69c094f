"""Does this host really serve that model, in that vector space?"""

from __future__ import annotations

from ..stamps import check_store, read_stamp, stamp_store

__all__ = ["check_store", "read_stamp", "stamp_store"]
