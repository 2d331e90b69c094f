"""Embed on many machines: Ray Data, a Ray cluster as an encoder, and a function for Spark."""

from .batch import BGEBatchEncoder, make_predict_fn
from .cluster import RayEncoder, connect, spread
from .dataset import Written, embed_dataset
from .placement import Workers, plan_workers

__all__ = [
    "BGEBatchEncoder",
    "RayEncoder",
    "Workers",
    "Written",
    "connect",
    "embed_dataset",
    "make_predict_fn",
    "plan_workers",
    "spread",
]
