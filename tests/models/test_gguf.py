"""GGUF files of every family against the model that was written, and of all kinds of blocks against transformers' own reading."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import FAMILIES, write
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from afina.engine.decoder import Decoder
from afina.engine.ops import Segments
from afina.models import load_base
from afina.models.model import Packed


def llama_3_factors() -> np.ndarray:
    """As the converter computes them (Llama 3.1's reference code)."""
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 32, 2) / 32)
    smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
    return np.float32(1 / ((1 - smooth) / 32 + smooth))


def blocks(array: np.ndarray, dtype: gguf.GGMLQuantizationType) -> np.ndarray:
    """The array quantised, or, for the kinds that the package only reads, random blocks with small scales."""
    try:
        return gguf.quants.quantize(np.ascontiguousarray(array), dtype)
    except NotImplementedError:
        size, width = gguf.GGML_QUANT_SIZES[dtype]
        count = array.size // size
        raw = np.random.default_rng(array.shape[0]).integers(0, 256, (count, width), dtype=np.uint8)
        for at in SCALES[dtype.name]:
            raw[:, at : at + 2] = np.frombuffer(np.float16(0.0005).tobytes(), np.uint8)
        return raw.reshape(array.shape[0], -1)


SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # bytes at which fp16 scales lie


def compare(path: Path, other: PreTrainedModel) -> None:
    base = load_base(str(path), precision="fp32")
    assert isinstance(base.model.module, Decoder)
    ids = torch.arange(3, 60)
    with torch.no_grad():
        found = base.model.label_logits(Packed(ids, ids, Segments((0, len(ids)))))
        expected = other(ids[None]).logits[0]
    assert expected.std() > 1e-3
    assert torch.allclose(found, expected, atol=1e-4 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    compare(tmp_path / "model.gguf", write(tmp_path / "model.gguf", family))


@pytest.mark.parametrize("kind", [*SCALES, "Q8_0", "Q4_0"])
def test_blocks_are_read_as_transformers_reads_them(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama", kind)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    compare(tmp_path / "model.gguf", other)


@pytest.mark.parametrize(("key", "value", "words"), [
    ("llama.embedding_length", None, "are not those of a model"),
    ("llama.attention.head_count", 0, "are not those of a model"),
    ("llama.attention.head_count", 7, "are not those of a model|do not fit"),
    ("token_embd.weight", None, "are not those of a model"),
    ("blk.0.ffn_up.weight", 99, "unknown type"),
    ("blk.0.ffn_up.weight", 14, "cannot fill|ends inside|do not fit"),
])  # fmt: skip
@pytest.mark.parametrize("quantize", [None, "keep"])
def test_damaged_files_are_refused(
    key: str, value: int | None, words: str, quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hostile file would say it: read, then changed behind the reader's back."""
    from dataclasses import replace

    from afina.core.errors import BaseModelError
    from afina.models.formats import gguf as own

    write(tmp_path / "model.gguf", "llama", "Q8_0")
    parse = own.GGUF._parse

    def damaged(self) -> None:
        parse(self)
        table = self.tensors if key in self.tensors else self.metadata
        if value is None:
            del table[key]
        else:
            table[key] = replace(table[key], kind=value, shape=(128, 120)) if table is self.tensors else value

    monkeypatch.setattr(own.GGUF, "_parse", damaged)
    with pytest.raises(BaseModelError, match=words):
        load_base(str(tmp_path / "model.gguf"), precision="fp32", quantize=quantize)
