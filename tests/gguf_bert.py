"""Write a BERT with random weights as a gguf file for llama.cpp, and the same weights as ``.npz``.

Run by the Python of `make real-servers`, which has the package ``gguf``: ``python gguf_bert.py OUT.gguf``.
Its words are single letters and digits: a WordPiece vocabulary that llama.cpp reads as it reads BGE's.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

HIDDEN, LAYERS, HEADS, INNER, CONTEXT = 384, 2, 12, 512, 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_lowercase + string.digits
TOKENS = len(SPECIAL) + 2 * len(LETTERS)


def weights():
    """Return the tensors by the names that gguf gives them; the same on every call."""
    import numpy as np

    numbers = np.random.default_rng(3)

    def random(*shape, around=0.0):
        return (around + 0.2 * numbers.standard_normal(shape)).astype(np.float32)

    def norm(name):
        return {f"{name}.weight": random(HIDDEN, around=1.0), f"{name}.bias": random(HIDDEN)}

    def linear(name, out, inner):
        return {f"{name}.weight": random(out, inner), f"{name}.bias": random(out)}

    found = {"token_embd.weight": random(TOKENS, HIDDEN), "position_embd.weight": random(CONTEXT, HIDDEN)}
    found |= {"token_types.weight": random(2, HIDDEN), **norm("token_embd_norm")}
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            found |= linear(f"blk.{i}.{name}", HIDDEN, HIDDEN)
        found |= linear(f"blk.{i}.ffn_up", INNER, HIDDEN) | linear(f"blk.{i}.ffn_down", HIDDEN, INNER)
        found |= norm(f"blk.{i}.attn_output_norm") | norm(f"blk.{i}.layer_output_norm")
    return found


def write(path: Path, pooling: str) -> None:
    """Write the file; ``pooling`` is a name of ``gguf.PoolingType``."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[pooling])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    # llama.cpp marks the first piece of a word, where BERT marks the others.
    writer.add_token_list([*SPECIAL, *(f"\u2581{letter}" for letter in LETTERS), *LETTERS])
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * 2 * len(LETTERS))
    writer.add_token_type_count(2)
    for add, place in (
        (writer.add_pad_token_id, 0),
        (writer.add_unk_token_id, 1),
        (writer.add_bos_token_id, 2),
        (writer.add_sep_token_id, 3),
        (writer.add_eos_token_id, 3),
        (writer.add_mask_token_id, 4),
    ):
        add(place)
    for name, tensor in weights().items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
