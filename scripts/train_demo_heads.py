"""Train the bundled demo model's two heads, as bge-m3 has them, on its frozen states; some minutes on a CPU.

    apt-get -o Acquire::Languages=en update
    python scripts/train_demo_heads.py OUT_FOLDER

Material and seed are those of train_demo.py; the 2,000 held-out pairs are never read. The states of all tokens are
computed once, a query's with its instruction in front, as it will be.

- Sparse, a weight per token: begun from the rarity of each token, by least squares (0 for the instruction's own), then
  InfoNCE over the dot products of a batch, with a penalty on weights, and a larger one on the instruction's.
- Multivector, a vector per token: begun from the states themselves, then InfoNCE over mean MaxSim.

Batches are made of families that the demo model's own dense vectors find alike. Writes sparse_linear.safetensors and
colbert_linear.safetensors, in float16.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import demo_data
import numpy as np
import torch
import torch.nn.functional as F
from demo_student import INSTRUCTION, SPECIAL
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from train_demo import batches, neighbours
from transformers import BertModel

BUNDLED = Path(__file__).parents[1] / "src" / "bge_integrations" / "demo" / "model"


class States(NamedTuple):
    """Tokens of texts, one text after another, [CLS] first.

    Attributes:
        ids: of the tokens.
        states: float16, a row per token.
        ends: of each text.
        cls: unit [CLS] vectors, which are the dense ones.
    """

    ids: Tensor
    states: Tensor
    ends: Tensor
    cls: Tensor

    def rows(self, text: int, most: int) -> slice:
        start = int(self.ends[text - 1]) if text else 0
        return slice(start, min(int(self.ends[text]), start + most))

    def of(self, texts: Sequence[int], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, states and the place among ``texts`` of the tokens of some texts."""
        rows = [self.rows(text, most) for text in texts]
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([r.stop - r.start for r in rows]))
        return torch.cat([self.ids[r] for r in rows]), torch.cat([self.states[r] for r in rows]).float(), owner


@torch.inference_mode()
def read(model: BertModel, tokenizer: Tokenizer, texts: Sequence[str], most: int) -> States:
    """Compute the states of all tokens; texts end after ``most`` of them."""
    tokenizer.enable_truncation(most)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    ends = torch.tensor([len(row) for row in rows]).cumsum(0)
    states = torch.empty(int(ends[-1]), model.config.hidden_size, dtype=torch.float16)
    cls = torch.empty(len(rows), model.config.hidden_size)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), 64):
        part = order[first : first + 64]
        width = -(-len(rows[part[-1]]) // 8) * 8
        ids = torch.zeros(len(part), width, dtype=torch.long)
        for line, i in enumerate(part):
            ids[line, : len(rows[i])] = torch.tensor(rows[i])
        hidden = model(ids, attention_mask=(ids != 0).long()).last_hidden_state
        cls[torch.tensor(part)] = F.normalize(hidden[:, 0], dim=1)
        for line, i in enumerate(part):
            states[int(ends[i]) - len(rows[i]) : int(ends[i])] = hidden[line, : len(rows[i])].half()
    return States(torch.tensor([i for row in rows for i in row]), states, ends, cls)


class Trainer:
    def __init__(self, queries: States, passages: States, instruction: int, args: argparse.Namespace) -> None:
        self.queries, self.passages, self.args = queries, passages, args
        self.instructed = slice(1, 1 + instruction)
        self.vocabulary = args.vocabulary
        near = neighbours(passages.cls, 64)
        self.stream: Callable[[int], Iterator[list[int]]] = lambda size: batches(
            near, size, args.family, random.Random(args.seed)
        )

    def first_sparse(self) -> nn.Linear:
        """Return the head whose weights are nearest to each token's rarity, and to 0 for the instruction."""
        passages = self.passages
        frequency = Counter[int]()
        for text in range(len(passages.ends)):
            frequency.update(set(passages.ids[passages.rows(text, 512)].tolist()))
        count = len(passages.ends)
        rarity = torch.tensor([np.log((count + 1) / (frequency[i] + 1)) for i in range(self.vocabulary)]).float()
        rarity[: len(SPECIAL)] = 0.0
        some = torch.randperm(count)[:4000].tolist()
        ids, states, _ = passages.of(some, 512)
        asked, queried, owner = self.queries.of(some, 512)
        own = self.own(owner)
        wanted = torch.cat([rarity[ids], torch.where(own, 0.0, rarity[asked])])
        states = torch.cat([states, queried])
        ones = torch.cat([states, torch.ones(len(states), 1)], 1)
        weighted = ones * torch.cat([torch.ones(len(ids)), torch.where(own, 30.0, 5.0)])[:, None]
        ridge = 1e-3 * len(ones) * torch.eye(ones.shape[1])
        solved = torch.linalg.solve(weighted.T @ ones + ridge, weighted.T @ wanted)
        head = nn.Linear(states.shape[1], 1)
        with torch.no_grad():
            scale = self.args.scale / wanted.max()
            head.weight.copy_(solved[:-1] * scale)
            head.bias.copy_(solved[-1:] * scale)
        return head

    def own(self, owner: Tensor) -> Tensor:
        """Tell which tokens of queries are the instruction's."""
        starts = torch.cat([torch.zeros(1, dtype=torch.long), owner.bincount().cumsum(0)[:-1]])
        place = torch.arange(len(owner)) - starts[owner]
        return (place >= self.instructed.start) & (place < self.instructed.stop)

    def bags(self, head: nn.Linear, ids: Tensor, states: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Return a row of weights by token id for each text, and the weight of each token."""
        weights = torch.relu(head(states)[:, 0])
        weights = torch.where(ids < len(SPECIAL), 0.0, weights)
        count = int(owner[-1]) + 1
        rows = torch.zeros(count * self.vocabulary).scatter_reduce(
            0, owner * self.vocabulary + ids, weights, "amax", include_self=True
        )
        return rows.view(count, self.vocabulary), weights

    def sparse(self, head: nn.Linear, steps: int) -> None:
        optimizer = torch.optim.Adam(head.parameters(), lr=self.args.sparse_lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
        stream, shown = self.stream(self.args.batch), Counter[str]()
        for step in range(steps):
            batch = next(stream)
            asked, queried, owner = self.queries.of(batch, 64)
            q, _ = self.bags(head, asked, queried, owner)
            p, _ = self.bags(head, *self.passages.of(batch, self.args.tokens))
            losses = {
                "rank": F.cross_entropy(q @ p.T / self.args.temperature, torch.arange(len(batch))),
                "weights": self.args.penalty * (q.sum(1).mean() + p.sum(1).mean()),
                "instruction": self.args.instruction * head(queried)[:, 0][self.own(owner)].relu().mean(),
            }
            _step(optimizer, losses)
            schedule.step()
            _show(shown, step, {**losses, "kept": (p > 0).float().sum(1).mean()})

    def multivector(self, head: nn.Linear, steps: int) -> None:
        optimizer = torch.optim.Adam(head.parameters(), lr=self.args.multivector_lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
        stream, shown = self.stream(self.args.small_batch), Counter[str]()
        for step in range(steps):
            batch = next(stream)
            scores = self.max_sim(head, batch)
            _step(optimizer, {"rank": F.cross_entropy(scores / 0.02, torch.arange(len(batch)))})
            schedule.step()
            _show(shown, step, {"right": (scores.argmax(1) == torch.arange(len(batch))).float().mean()})

    def max_sim(self, head: nn.Linear, batch: Sequence[int]) -> Tensor:
        sides = []
        for side, most in ((self.queries, 48), (self.passages, self.args.tokens)):
            _, states, owner = side.of(batch, most)
            vectors = F.normalize(head(states), dim=1)
            lengths = owner.bincount().tolist()
            sides.append([part[1:] for part in vectors.split(lengths)])  # all but [CLS]
        queries, passages = sides
        products = torch.cat(queries) @ torch.cat(passages).T
        best = torch.stack([part.amax(1) for part in products.split([len(p) for p in passages], 1)], 1)
        return torch.stack([part.mean(0) for part in best.split([len(q) for q in queries])])


def _step(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    sum(losses.values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def _show(shown: Counter[str], step: int, values: dict[str, Tensor]) -> None:
    shown.update({name: value.item() for name, value in values.items()})
    if (step + 1) % 50 == 0:
        print(f"step {step + 1}: " + " ".join(f"{name} {value / 50:.4f}" for name, value in shown.items()), flush=True)
        shown.clear()


def save(head: nn.Linear, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous() for name, value in head.state_dict().items()}, path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="whose states the heads stand on")
    parser.add_argument("--lists", type=Path, default=demo_data.APT_LISTS)
    parser.add_argument("--pairs", type=int, default=14_000)
    parser.add_argument("--tokens", type=int, default=160, help="of a passage")
    parser.add_argument("--family", type=int, default=12)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--small-batch", type=int, default=48, help="for multivector")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--multivector-steps", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--scale", type=float, default=0.5, help="first weight of the rarest token")
    parser.add_argument("--penalty", type=float, default=1e-3)
    parser.add_argument("--instruction", type=float, default=20.0)
    parser.add_argument("--sparse-lr", type=float, default=1e-3)
    parser.add_argument("--multivector-lr", type=float, default=3e-4)
    parser.add_argument("--cache", type=Path, help="keeps the states")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args, begun = arguments(), time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pairs = demo_data.debian(args.lists).train + demo_data.python_documentation()
    pairs = random.Random(args.seed).sample(pairs, args.pairs)
    model = BertModel.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    args.vocabulary = model.config.vocab_size
    instruction = len(tokenizer.encode(INSTRUCTION, add_special_tokens=False).ids)
    if args.cache and args.cache.exists():
        queries, passages = (States(*side) for side in torch.load(args.cache))
    else:
        queries = read(model, tokenizer, [INSTRUCTION + pair.query for pair in pairs], 64)
        passages = read(model, tokenizer, [pair.passage for pair in pairs], args.tokens)
        if args.cache:
            torch.save([tuple(queries), tuple(passages)], args.cache)
    print(f"{len(pairs):,} pairs, {len(passages.ids):,} tokens, {time.monotonic() - begun:.0f} s", flush=True)
    trainer = Trainer(queries, passages, instruction, args)
    sparse = trainer.first_sparse()
    trainer.sparse(sparse, args.steps)
    save(sparse, args.out / "sparse_linear.safetensors")
    print(f"{time.monotonic() - begun:.0f} s", flush=True)
    multivector = nn.Linear(model.config.hidden_size, model.config.hidden_size)
    with torch.no_grad():
        multivector.weight.copy_(torch.eye(model.config.hidden_size))
        multivector.bias.zero_()
    trainer.multivector(multivector, args.multivector_steps)
    save(multivector, args.out / "colbert_linear.safetensors")
    print(f"{time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
