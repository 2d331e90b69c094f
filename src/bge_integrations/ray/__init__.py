"""Embed on many machines: Ray Data, bulk jobs on a Ray cluster, and a function for Spark."""

from .batch import BGEBatchEncoder, make_predict_fn
from .cluster import RayShards, connect
from .dataset import Written, embed_dataset
from .placement import Workers, plan_workers

__all__ = [
    "BGEBatchEncoder",
    "RayShards",
    "Workers",
    "Written",
    "connect",
    "embed_dataset",
    "make_predict_fn",
    "plan_workers",
]
