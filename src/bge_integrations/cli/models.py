"""``bge models``: the catalogue."""

from __future__ import annotations

import argparse

from ..catalog import MODELS, find_model, who_serves
from ..catalog.rerank_hosts import who_reranks
from ..catalog.rerankers import RERANKERS, find_reranker, is_reranker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge models``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="model or reranker to show in full")


def run(parsed: argparse.Namespace) -> int:
    """Print all models, or one."""
    if parsed.name:
        reranks = is_reranker(parsed.name)
        card = find_reranker(parsed.name) if reranks else find_model(parsed.name)
        for name, value in vars(card).items():
            print(f"{name:20} {value!r}")
        hosts = who_reranks(card.id) if reranks else who_serves(card.id)
        print(f"{'served by':20} {', '.join(hosts) or 'no provider in the catalogue'}")
        return 0
    for card in MODELS:
        print(f"{card.id:32} {card.dimensions:5} dimensions {card.max_tokens:6} tokens  {', '.join(card.languages)}")
        print(f"{'':32} query: {card.query_format.replace('{instruction}', card.query_instruction or '')!r}")
    for card in RERANKERS:
        print(f"{card.id:32} {'reranker':>16} {card.max_tokens:6} tokens  {', '.join(card.languages)}")
    return 0
