"""Train the bundled demo reranker on a CPU, with the hard negatives of the demo embedder.

    apt-get -o Acquire::Languages=en update
    python scripts/train_demo_reranker.py OUT_FOLDER --cache CACHE_FOLDER

Texts are those of train_demo.py; the 2,000 held-out pairs (demo_data.debian) are never trained on. Needs the package
with its extra `local`. Seeds are fixed; another Debian release, Python or torch gives slightly other numbers.

The untrained model already counts words: a token attends to its equals on the other side of the pair, or else to a
special token, so that one dimension says whether it was found there; in the last layer the first token takes the mean
of that over the query, weighted by rarity. One step: some queries, each with its passage, passages that the demo
embedder finds near, and one at random. The loss is a softmax over the list, and the logit's own cross entropy, so that
a sigmoid of 0.5 means something.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import demo_data
import demo_student
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from bge_integrations import load_encoder
from bge_integrations.demo import MODEL_FOLDER

CLS, SEP = 2, 3  # of the demo embedder's tokenizer, whose file the reranker has a copy of
SPECIAL = len(demo_student.SPECIAL)
TYPE, MARK, RARE, FOUND = -4, -3, -2, -1
"""Dimensions with a meaning from the start: side of the pair, special token, rarity, found on the other side."""


class Lists(NamedTuple):
    """Token ids of all queries and passages, and for each query the passages that the demo embedder finds near."""

    queries: list[list[int]]
    passages: list[list[int]]
    near: np.ndarray


def near_passages(pairs: Sequence[demo_data.Pair], count: int, cache: Path) -> np.ndarray:
    """Return the `count` nearest passages of each query, its own left out."""
    path = cache / f"near-{len(pairs)}-{count}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        encoder = load_encoder("demo", show_progress=False)
        queries = encoder.encode([pair.query for pair in pairs], role="query")
        passages = torch.from_numpy(encoder.encode([pair.passage for pair in pairs], role="document"))
        rows = []
        for start in range(0, len(pairs), 1024):
            scores = torch.from_numpy(queries[start : start + 1024]) @ passages.T
            scores[torch.arange(len(scores)), torch.arange(len(scores)) + start] = -2.0
            rows.append(scores.topk(count).indices.to(torch.int32))
        np.save(path, torch.cat(rows).numpy())
    return np.load(path)


def fresh_model(args: argparse.Namespace, words: int) -> XLMRobertaForSequenceClassification:
    config = XLMRobertaConfig(
        vocab_size=words,
        hidden_size=args.width,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=2,
        max_position_embeddings=demo_student.POSITIONS + 1,
        pad_token_id=0,
        bos_token_id=CLS,
        eos_token_id=SEP,
        type_vocab_size=2,
        initializer_range=0.04,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=1,
    )
    return XLMRobertaForSequenceClassification(config)


def start_by_counting(model: XLMRobertaForSequenceClassification, counts: Counter[int], seed: int) -> None:
    """Set the first weights so that the model scores by the words that both texts have."""
    trunk = model.roberta
    width = model.config.hidden_size
    donor = demo_student.BertModel.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    vectors = donor.embeddings.word_embeddings.weight.detach().numpy()
    total = sum(counts.values())
    rarity = torch.tensor([-math.log(counts[i] / total + 1e-5) for i in range(len(vectors))])
    rarity = (rarity - rarity.mean()) / rarity.std()
    with torch.no_grad():
        table = trunk.embeddings
        words = table.word_embeddings.weight
        words[:, : width - 4] = torch.from_numpy(demo_student.components(vectors, width - 4, seed))
        words[:, TYPE:] = 0.0
        words[:, RARE] = rarity
        words[:SPECIAL] = 0.0
        words[:SPECIAL, MARK] = 6.0
        table.position_embeddings.weight *= 0.25
        table.token_type_embeddings.weight.zero_()
        table.token_type_embeddings.weight[:, TYPE] = torch.tensor([-2.0, 2.0])
        for layer in trunk.encoder.layer:
            layer.attention.output.dense.weight *= 0.5
            layer.output.dense.weight *= 0.5
        _attend_to_equals(trunk.encoder.layer[0].attention, width)
        _read_the_query(trunk.encoder.layer[-1].attention, width)
        model.classifier.dense.weight[0, :] = 0.0
        model.classifier.dense.weight[0, FOUND] = 0.5
        model.classifier.out_proj.weight[0, 0] = 3.0


def _attend_to_equals(attention: torch.nn.Module, width: int) -> None:
    """Each of two heads compares half of a word's dimensions, on the other side of the pair alone."""
    head, half = width // 2, (width - 4) // 2
    query, key, value = attention.self.query, attention.self.key, attention.self.value
    for linear in (query, key, value, attention.output.dense):
        linear.weight *= 0.25
    for i in range(2):
        rows = torch.arange(i * head, i * head + half)
        columns = torch.arange(i * half, i * half + half)
        query.weight[rows], key.weight[rows] = 0.0, 0.0
        query.weight[rows, columns], key.weight[rows, columns] = 2.2, 1.0
        side, mark = i * head + half, i * head + half + 1
        query.weight[[side, mark]], key.weight[[side, mark]] = 0.0, 0.0
        query.weight[side, TYPE], key.weight[side, TYPE] = -10.0, 1.0
        query.bias[mark], key.weight[mark, MARK] = 6.0, 1.0
        value.weight[mark] = 0.0
        value.weight[mark, MARK], value.bias[mark] = -0.1, 1.0
        attention.output.dense.weight[:, mark] = 0.0
        attention.output.dense.weight[FOUND] = 0.0
    attention.output.dense.weight[FOUND, [half + 1, head + half + 1]] = 1.5


def _read_the_query(attention: torch.nn.Module, width: int) -> None:
    """The first head of the first token takes a mean over the query's words, the rare ones more."""
    head = width // 2
    query, key, value = attention.self.query, attention.self.key, attention.self.value
    query.weight[0], key.weight[0], value.weight[0] = 0.0, 0.0, 0.0
    query.bias[0] = 7.0
    key.weight[0, RARE], key.weight[0, TYPE], key.weight[0, MARK] = 1.0, -2.0, -2.0
    query.weight[1:head] *= 0.25
    value.weight[0, FOUND] = 1.0
    attention.output.dense.weight[FOUND] = 0.0
    attention.output.dense.weight[FOUND, 0] = 2.0


def logits_of(model: XLMRobertaForSequenceClassification, ids: Tensor, types: Tensor, shift: int = 0) -> Tensor:
    """Return the logits of a padded batch, with gradients; of the last layer only the first token is computed.

    `shift` moves all positions but the first token's up, so that all of them learn from short pairs.
    """
    table, layers, heads = model.roberta.embeddings, model.roberta.encoder.layer, model.config.num_attention_heads
    positions = torch.arange(ids.shape[1]) + 1
    positions[1:] += shift
    x = table.word_embeddings(ids) + table.position_embeddings(positions) + table.token_type_embeddings(types)
    x = table.LayerNorm(x)
    mask = torch.where(ids != 0, 0.0, -1e4)[:, None, None, :]
    for layer in layers[:-1]:
        x = demo_student.layer_states(layer, x, x, mask, heads)
    x = demo_student.layer_states(layers[-1], x[:, :1], x, mask, heads)[:, 0].float()
    head = model.classifier
    with torch.autocast("cpu", enabled=False):
        logits: Tensor = head.out_proj(torch.tanh(head.dense(x)))[:, 0]
    return logits


class Trainer:
    def __init__(self, model: XLMRobertaForSequenceClassification, lists: Lists, args: argparse.Namespace) -> None:
        self.model, self.lists, self.args = model, lists, args
        self.rng = random.Random(args.seed)
        plain = [p for p in model.parameters() if p.ndim == 1]
        dense = [p for p in model.parameters() if p.ndim > 1]
        groups = [{"params": dense, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))

    def candidates(self, row: int, hard: int) -> list[int]:
        """Return the right passage, so many wrong ones that are near, and others at random."""
        near = self.rng.sample(self.lists.near[row].tolist(), hard)
        others = self.rng.choices(range(len(self.lists.passages)), k=self.args.candidates - 1 - hard)
        return [row, *near, *others]

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """Return a logit for each pair; like lengths are computed together so that little is padding."""
        rows = [[CLS, *query, SEP, *passage, SEP] for query, passage in pairs]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = []
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            # A few widths only: oneDNN prepares its kernels anew for every shape it has not seen.
            width = min(-(-len(rows[part[-1]]) // 16) * 16, demo_student.POSITIONS)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            types = torch.zeros(len(part), width, dtype=torch.long)
            for line, i in enumerate(part):
                ids[line, : len(rows[i])] = torch.tensor(rows[i])
                types[line, len(pairs[i][0]) + 2 : len(rows[i])] = 1
            room = demo_student.POSITIONS - width
            shift = self.rng.randint(0, room) if self.rng.random() < 0.2 else 0
            with torch.autocast("cpu", torch.bfloat16):
                out.append(logits_of(self.model, ids, types, shift))
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(rows))
        return torch.cat(out)[back]

    def loss(self, batch: Sequence[int]) -> dict[str, Tensor]:
        short = self.rng.random() < self.args.short
        longest = 420 if self.rng.random() < 0.02 else self.rng.choice([12, 16, 24] if short else [64, 96, 128, 160])
        # Short passages of strangers: there, meaning decides; near ones teach words.
        hard = (self.args.candidates - 2) // (3 if short else 1)
        pairs = []
        for row in batch:
            query = self.lists.queries[row]
            if self.rng.random() < 0.2 and len(query) > 3:
                query = [i for i in query if self.rng.random() > 0.15] or query
            pairs += [(query[:80], self.lists.passages[i][:longest]) for i in self.candidates(row, hard)]
        logits = self.score(pairs).view(len(batch), -1)
        right = torch.zeros_like(logits)
        right[:, 0] = 1.0
        return {
            "list": F.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long)),
            "pair": self.args.pair * F.binary_cross_entropy_with_logits(logits, right),
        }

    def run(self) -> None:
        begun, total = time.monotonic(), Counter()
        rows: list[int] = []
        for step in range(self.args.steps):
            done = max(step / self.args.steps, (time.monotonic() - begun) / (60 * self.args.minutes))
            if done >= 1.0:
                break
            if len(rows) < self.args.batch:
                rows = self.rng.sample(range(len(self.lists.queries)), len(self.lists.queries))
            batch, rows = rows[: self.args.batch], rows[self.args.batch :]
            for group in self.optimizer.param_groups:
                warm = min(1.0, (step + 1) / 50)
                group["lr"] = self.args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            losses = self.loss(batch)
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            total.update({name: loss.item() for name, loss in losses.items()})
            if (step + 1) % 50 == 0:
                means = " ".join(f"{name} {value / 50:.3f}" for name, value in total.items())
                print(f"step {step + 1} {time.monotonic() - begun:.0f} s: {means}", flush=True)
                total.clear()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("demo-cache"), help="keeps which passages are near")
    parser.add_argument("--lists", type=Path, default=demo_data.APT_LISTS)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--inner", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--minutes", type=float, default=math.inf, help="wind down by then, with fewer steps")
    parser.add_argument("--batch", type=int, default=32, help="queries a step")
    parser.add_argument("--candidates", type=int, default=8, help="passages a query")
    parser.add_argument("--near", type=int, default=30, help="wrong passages are drawn from so many near ones")
    parser.add_argument("--short", type=float, default=0.25, help="share of steps with the beginnings of passages")
    parser.add_argument("--start", type=Path, help="go on from this folder instead of counting words")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pair", type=float, default=1.0, help="weight of the logit's own loss")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pairs = demo_data.debian(args.lists).train + demo_data.python_documentation()
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    ids = lambda texts: [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]  # noqa: E731
    near = near_passages(pairs, args.near, args.cache)
    lists = Lists(ids([pair.query for pair in pairs]), ids([pair.passage for pair in pairs]), near)
    if args.start:
        model = XLMRobertaForSequenceClassification.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = fresh_model(args, tokenizer.get_vocab_size())
        start_by_counting(model, Counter(i for row in lists.passages for i in row), args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(pairs):,} pairs", flush=True)
    Trainer(model, lists, args).run()
    demo_student.save_weights(model.eval(), tokenizer, args.out)


if __name__ == "__main__":
    main()
