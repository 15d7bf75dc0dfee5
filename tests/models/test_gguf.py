"""GGUF files of every family against the model that was written, and of all kinds of blocks against transformers' own
reading."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import FAMILIES, SCALES, write
from tiny_tokenizer import gguf_close
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from afina.core.errors import BaseModelError
from afina.engine.blocks import Blocks
from afina.engine.decoder import Decoder
from afina.engine.families import architecture_of
from afina.engine.ops import Segments
from afina.models import load_base
from afina.models.formats.gguf import GGUF
from afina.models.formats.gguf_models import read_config, read_weights
from afina.models.model import unshared
from afina.models.reading import _filled
from afina.models.skeleton import decoder_skeleton
from afina.models.sources.source import Source


def compare(path: Path, other: PreTrainedModel) -> None:
    base = load_base(str(path), precision="fp32")
    assert isinstance(base.model.module, Decoder)
    ids = torch.arange(3, 60)
    with torch.no_grad():
        found = base.model.label_logits(unshared(ids, ids, Segments((0, len(ids)))))
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
    ("blk.0.ffn_up.weight", 99, "type 99, of a later GGUF or none"),
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


@pytest.mark.parametrize("alignment", [0, -1, "x", 1 << 40])
def test_an_alignment_that_is_none_is_refused(alignment: int | str, tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    key = "general.alignment"
    writer.add_string(key, alignment) if isinstance(alignment, str) else writer.add_int64(key, alignment)
    gguf_close(writer)
    with pytest.raises(BaseModelError, match="aligned to"):
        GGUF(path)


def test_a_matrix_that_is_turned_is_not_taken_for_its_blocks(tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf", "llama", "Q8_0")
    file = GGUF(tmp_path / "whole.gguf")
    module = decoder_skeleton(read_config(file), architecture_of(read_config(file)))
    weights = read_weights(file, module.config, module.state_dict(), torch.float32, keep=True)
    name = "model.layers.0.self_attn.k_proj.weight"
    assert weights[name].shape == (128, 256)
    weights[name] = Blocks(weights[name].data[:, :136].repeat(2, 1), 8, 128, torch.float32)  # (256, 128)
    with pytest.raises(BaseModelError, match=r"k_proj.weight has shape \(256, 128\)"):
        _filled(Source("turned", "gguf", tmp_path / "whole.gguf"), module, weights)


OLDER_SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,)}


@pytest.mark.parametrize("quantize", [None, "keep"])
@pytest.mark.parametrize("kind", ["F32", *OLDER_SCALES, *SCALES])
def test_numbers_that_are_not_finite_are_refused(kind: str, quantize: str | None, tmp_path: Path) -> None:
    """In each place of a block that holds a scale, as dequantised and as kept."""
    path = tmp_path / "model.gguf"
    write(path, "llama", kind)
    name = "blk.1.ffn_up.weight"
    info, whole = GGUF(path).tensors[name], path.read_bytes()
    width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.kind)][1]
    for number in (float("nan"), float("inf")):
        for at in {**OLDER_SCALES, **SCALES}.get(kind, (0,)):
            place = info.offset + 100 * width + at
            raw = (np.float32 if kind == "F32" else np.float16)(number).tobytes()
            path.write_bytes(whole[:place] + raw + whole[place + len(raw) :])
            with pytest.raises(BaseModelError, match=f"{name} holds numbers that are not finite|contains no blocks"):
                load_base(str(path), precision="fp32", device="cpu", quantize=quantize)
