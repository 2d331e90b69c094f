"""bge-m3's heads on every token's last state: a weight per token (sparse), a vector per token (multivector).

As in https://github.com/FlagOpen/FlagEmbedding (inference/embedder/encoder_only/m3.py): both stand on the raw states;
sparse is a ReLU, leaves out special tokens and keeps the largest weight of a repeated one; multivector leaves out the
first token alone. Written for arrays of numpy and of torch alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalog.weights import HEAD_FILES, find_head
from ..core.outputs import Output
from ..core.token_outputs import Several, SparseVector
from ..core.tokenizer import TextTokenizer
from ..errors import ConfigError, ModelLoadError
from ..extras import require
from .architecture import brief


class TokenHeads:
    """The heads that a model's folder has, in float32; each is read at first use.

    Args:
        folder: of the model.
        tokenizer: knows the special tokens.
        device: where states are torch's tensors; None where they are numpy's arrays.
    """

    def __init__(self, folder: Path, tokenizer: TextTokenizer, device: str | None = None) -> None:
        self.folder, self.device = folder, device
        self.special = tokenizer.special_ids
        self._layers: dict[str, tuple[Any, Any]] = {}

    def layer(self, name: str) -> tuple[Any, Any]:
        """Return weight and bias of an output's head.

        Raises:
            ModelLoadError: the folder has no such file, or it cannot be read.
        """
        if name not in self._layers:
            file = find_head(self.folder, name)
            if file is None:
                raise ModelLoadError(
                    f"{str(self.folder)!r} has no {HEAD_FILES[name]}.pt, so no {name} output can be computed: "
                    "download that file of BAAI/bge-m3 into it, or ask for the other outputs"
                )
            self._layers[name] = _on(self.device, *_read(file))
        return self._layers[name]

    def columns(
        self, output: Several, pooled: NDArray[np.float32], states: Any, items: Sequence[NDArray[np.int32]]
    ) -> dict[str, Any]:
        """Return a column of each output for some texts.

        Args:
            output: what is wanted.
            pooled: one state per text.
            states: every token's, one text after another; rows after the last text's are ignored.
            items: token ids of each text.
        """
        columns: dict[str, Any] = {"dense": pooled}
        if "sparse" in output.names:
            columns["sparse"] = self._sparse(states, items)
        if "multivector" in output.names:
            columns["multivector"] = self._multivector(states, items)
        return columns

    def _sparse(self, states: Any, items: Sequence[NDArray[np.int32]]) -> list[SparseVector]:
        weight, bias = self.layer("sparse")
        weights = _array((states @ weight[0] + bias).clip(min=0)).tolist()
        rows: list[SparseVector] = []
        start = 0
        for ids in items:
            row: SparseVector = {}
            for token, value in zip(ids.tolist(), weights[start : start + len(ids)], strict=True):
                if value > row.get(token, 0.0) and token not in self.special:
                    row[token] = value
            rows.append(row)
            start += len(ids)
        return rows

    def _multivector(self, states: Any, items: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        weight, bias = self.layer("multivector")
        vectors = _array(states @ weight.T + bias)
        ends = np.cumsum([len(ids) for ids in items]).tolist()
        return [vectors[end - len(ids) + 1 : end] for end, ids in zip(ends, items, strict=True)]


def accept(output: Output, heads: TokenHeads | None) -> None:
    """Refuse an output for which there is no head.

    Raises:
        ConfigError: the model has none at all.
        ModelLoadError: its folder lacks the head's file, or that cannot be read.
    """
    for name in output.names if isinstance(output, Several) else ():
        if heads is None:
            raise ConfigError(f"this model has no {output.names[-1]} output; BAAI/bge-m3 has one")
        if name in HEAD_FILES:
            heads.layer(name)


def _on(device: str | None, *arrays: NDArray[np.float32]) -> tuple[Any, Any]:
    if device is None:
        return arrays[0], arrays[1]
    import torch

    weight, bias = (torch.from_numpy(array).to(device) for array in arrays)
    return weight, bias


def _read(file: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias of a linear layer; of a ``.pt`` file no code is run."""
    try:
        if file.suffix == ".safetensors":
            tensors = require("safetensors.numpy", extra="local", purpose=repr(file.name)).load_file(file)
        else:
            torch = require("torch", extra="local", purpose=f"{file.name!r}, one of the model's heads,")
            tensors = {
                name: tensor.float().numpy()
                for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items()
            }
        weight, bias = (np.ascontiguousarray(tensors[name], np.float32) for name in ("weight", "bias"))
    except ImportError:  # MissingExtraError says what to install; the file is not at fault
        raise
    except Exception as error:
        raise ModelLoadError(f"{str(file)!r} cannot be read ({brief(error)}): fetch it again") from error
    return weight, bias


def _array(values: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return array
