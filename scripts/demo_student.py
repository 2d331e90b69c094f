"""The small BERT itself: its word pieces, its first weights, its forward pass while it learns, its folder.

Untrained, the student already is a weighted mean of word vectors: every piece starts from the teacher's vector
of that piece (principal components, turned at random), one dimension carries how telling the piece is, and
[CLS] attends by that dimension in the last layer. Training starts from there instead of from noise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
POSITIONS = 512
HEAD = 64
INSTRUCTION = "Represent this sentence for searching relevant passages: "


def word_pieces(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a lower-casing WordPiece on `texts`, framed by [CLS] and [SEP] as BERT's is."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # Without a bound on the alphabet every rare sign costs two pieces.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIAL, limit_alphabet=160, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *[INSTRUCTION] * 1000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def fresh_model(vocabulary: int, width: int, inner: int, layers: int) -> BertModel:
    heads = width // HEAD
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=POSITIONS,
        initializer_range=0.04,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=2,
    )
    model = BertModel(config)
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight *= 0.5
            layer.output.dense.weight *= 0.5
        model.embeddings.position_embeddings.weight *= 0.5
        model.embeddings.token_type_embeddings.weight.zero_()
        model.pooler.dense.weight.zero_()
    return model


def start_from_teacher(model: BertModel, vectors: np.ndarray, counts: Counter[int], seed: int) -> None:
    """Set the word vectors and the last layer so that [CLS] comes out as a mean weighted by rarity."""
    width = model.config.hidden_size
    content = torch.from_numpy(components(vectors, width - 1, seed))
    total = sum(counts.values())
    share = np.array([counts[i] / total for i in range(len(vectors))])
    weight = np.log(1e-3 / (1e-3 + share))
    spread = float(weight.std())
    telling = torch.from_numpy((weight - weight.mean()) / spread).float()
    with torch.no_grad():
        words = model.embeddings.word_embeddings.weight
        words[:, :-1], words[:, -1] = content, telling
        words[: len(SPECIAL), :-1], words[: len(SPECIAL), -1] = 0.0, -4.0
        _attend_by_last_dimension(model.encoder.layer[-1].attention, spread)
        model.encoder.layer[-1].attention.output.LayerNorm.weight[-1] = 0.05


def _attend_by_last_dimension(attention: torch.nn.Module, spread: float) -> None:
    width, size = attention.self.query.weight.shape[0], HEAD
    first = torch.arange(0, width, size)
    attention.self.query.weight *= 0.25
    attention.self.query.bias[first] = spread * size**0.5
    attention.self.key.weight *= 0.25
    attention.self.key.weight[first] = 0.0
    attention.self.key.weight[first, -1] = 1.0
    attention.self.value.weight.copy_(torch.eye(width))
    attention.self.value.weight[-1, -1] = 0.0
    attention.output.dense.weight.copy_(5.0 * torch.eye(width))


def components(vectors: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Return the principal components of `vectors`, turned at random, each row of a norm that LayerNorm would give."""
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    out = centred @ axes[:, ::-1][:, :width] @ turn
    return (out / np.linalg.norm(out, axis=1, keepdims=True) * width**0.5).astype(np.float32)


def embed(model: BertModel, ids: Tensor, shift: int = 0) -> Tensor:
    """Unit [CLS] vectors of a padded batch, with gradients.

    The last layer is computed for [CLS] alone. `shift` moves all positions but [CLS]'s up, so that all
    512 positions learn from short texts.
    """
    config, table = model.config, model.embeddings
    positions = torch.arange(ids.shape[1])
    positions[1:] += shift
    x = table.word_embeddings(ids) + table.position_embeddings(positions) + table.token_type_embeddings.weight[0]
    x = table.LayerNorm(x)
    mask = torch.where(ids != 0, 0.0, -1e4)[:, None, None, :]
    for layer in model.encoder.layer[:-1]:
        x = layer_states(layer, x, x, mask, config.num_attention_heads)
    x = layer_states(model.encoder.layer[-1], x[:, :1], x, mask, config.num_attention_heads)
    return F.normalize(x[:, 0].float(), dim=-1)


def layer_states(layer: torch.nn.Module, x: Tensor, memory: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return the states of `x` after a layer in which they attend to `memory`."""
    attention = layer.attention
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = attention.self.query(x), attention.self.key(memory), attention.self.value(memory)
    # Written out: torch's fused attention takes twice as long backwards on a CPU at these sizes.
    scores = split(q * (q.shape[-1] // heads) ** -0.5) @ split(k).transpose(-1, -2)
    y = torch.softmax(scores + mask, dim=-1) @ split(v)
    x = attention.output.LayerNorm(x + attention.output.dense(y.transpose(1, 2).flatten(2)))
    return layer.output.LayerNorm(x + layer.output.dense(F.gelu(layer.intermediate.dense(x))))


def save(model: BertModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that sentence-transformers and transformers load as it stands, weights in float16."""
    save_weights(model, tokenizer, folder)
    for path, content in _modules(model.config.hidden_size).items():
        _write(folder / path, content)


def save_weights(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that transformers loads as it stands, a CrossEncoder too where the model has a classifier."""
    reranks = hasattr(model, "classifier")
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        do_lower_case=True,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
    ).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    # Loaders that obey the folder then compute in float32; the weights themselves are float16.
    _update(folder / "config.json", dtype="float32")
    # The class name that transformers 4 knows as well.
    _update(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        # The reranker knows the passage by its token type; transformers leaves it out unless told.
        **({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if reranks else {}),
    )


def _modules(width: int) -> dict[str, object]:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": True},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "2_Normalize/config.json": {},
    }


def _update(path: Path, **changes: object) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
