"""Compose encoders and rerankers from names and options."""

from ..options import Options, RerankerOptions
from .encoder import check_encoder, load_encoder, load_m3
from .reranker import check_reranker, load_reranker

__all__ = ["Options", "RerankerOptions", "check_encoder", "check_reranker", "load_encoder", "load_m3", "load_reranker"]
