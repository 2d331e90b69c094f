"""A model's own ONNX file on onnxruntime, without torch or transformers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.local_folder import read_json
from ...catalog.records import ModelCard
from ...core.outputs import Output
from ...core.pairs import SECOND
from ...core.token_outputs import Several
from ...core.tokenizer import TextTokenizer, Tokens
from ...errors import MissingExtraError, ModelLoadError
from ...extras import require
from ..architecture import brief
from ..files import find_onnx
from ..heads import pool
from ..machine import usable_cores
from ..select import Choice
from ..token_heads import TokenHeads, accept
from .base import Backend

_STATES = ("last_hidden_state", "token_embeddings")  # as exported from transformers, and from sentence-transformers


class OnnxGraph(Backend):
    """A model's own ``model.onnx``, of which one output is read.

    Args:
        choice: what was chosen.
        folder: of the model.
        tokenizer: makes what ``forward`` takes.
        outputs: names that the output may have.
        advice: what to do where it has none of them.

    Raises:
        ModelLoadError: the graph is no BERT's, or has no such output.
    """

    padded = True
    budget = 1024

    def __init__(self, choice: Choice, folder: Path, tokenizer: Any, outputs: Sequence[str], advice: str) -> None:
        super().__init__(choice)
        file = find_onnx(folder)
        assert file is not None
        self.threads = usable_cores()
        self.session = open_session(file, self.threads, int8=choice.precision == "int8")
        self.tokenizer = tokenizer
        padding = read_json(folder / "config.json").get("pad_token_id")
        self.padding = padding if isinstance(padding, int) else 0
        self.inputs = {node.name for node in self.session.get_inputs()}
        names = [node.name for node in self.session.get_outputs()]
        held = [name for name in outputs if name in names]
        if not held:
            raise ModelLoadError(f"{str(file)!r} has no output {' or '.join(outputs)}, only {names}: {advice}")
        unknown = sorted(self.inputs - {"input_ids", "attention_mask", "token_type_ids"})
        if unknown:
            raise ModelLoadError(
                f"{str(file)!r} needs the inputs {', '.join(unknown)}, which BERT does not have: pass backend='torch'"
            )
        self.output = held[0]

    def tokenize(self, texts: list[Any]) -> Tokens:
        """Return token ids, cut to what the model reads."""
        tokens: Tokens = self.tokenizer.tokenize(texts)
        return tokens

    def run(self, items: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the output for token ids, and which of its tokens are no padding; ids may carry ``SECOND``."""
        lengths = list(map(len, items))
        shape = len(items), max(lengths)
        flat = np.concatenate(items).astype(np.int64)
        if flat.size == shape[0] * shape[1]:
            mask, both = np.ones(shape, bool), flat.reshape(shape)
        else:
            mask, both = np.arange(shape[1]) < np.array(lengths)[:, None], np.full(shape, self.padding, np.int64)
            both[mask] = flat
        types, ids = np.divmod(both, SECOND)
        feed = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": types}
        return self.session.run([self.output], {name: feed[name] for name in self.inputs})[0], mask


class OnnxBackend(OnnxGraph):
    """Token states from the graph, pooling and heads here."""

    def __init__(self, choice: Choice, card: ModelCard, folder: Path) -> None:
        tokenizer = TextTokenizer.read(folder, card.max_tokens)
        super().__init__(choice, folder, tokenizer, _STATES, "export the model without a head")
        self.pooling = card.pooling
        self.heads = TokenHeads(folder, tokenizer) if len(card.outputs) > 1 else None

    def accept(self, output: Output) -> None:
        """Refuse an output whose head the model's folder does not have."""
        accept(output, self.heads)

    def forward(self, items: Sequence[NDArray[np.int32]], output: Output) -> Any:
        """Return the pooled states of texts, and what else was asked for."""
        states, mask = self.run(items)
        pooled = pool(states, mask, self.pooling)
        if self.heads is None or not isinstance(output, Several):
            return pooled
        return self.heads.columns(output, pooled, states[mask], items)


def open_session(path: Path, threads: int, *, int8: bool) -> Any:
    """Return onnxruntime's session of a graph, with 8-bit weights where asked for."""
    onnxruntime = require("onnxruntime", extra="onnx", purpose="backend='onnx'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # used in onnxruntime's parallel mode alone, which is off
    try:
        if not int8:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory() as folder:  # the session has read the file when the folder goes
            small = _quantised(path, Path(folder))
            return onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])
    except MissingExtraError:
        raise
    except Exception as error:
        raise ModelLoadError(f"onnxruntime cannot load {str(path)!r} ({brief(error)}): export it again") from error


def _quantised(path: Path, folder: Path) -> Path:
    """Write the graph with 8-bit weights and return where."""
    require("onnx", install="onnx", purpose="precision='int8', which rewrites the graph,")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / "model.onnx"
    logging.root.addFilter(_not_about_preprocessing)
    try:
        quantize_dynamic(path, target, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.root.removeFilter(_not_about_preprocessing)
    return target


def _not_about_preprocessing(record: logging.LogRecord) -> bool:
    """Keep onnxruntime's advice, which it gives through the root logger, from the user's log."""
    return "pre-processing before quantization" not in record.getMessage()
