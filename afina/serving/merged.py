"""The one way to a merged model: an adapter folded into the base that it was trained on, in fp32, rounded once, and
written in transformers' format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afina.core.errors import AdapterError, SettingsError
from afina.core.files import leads_out, read_json, write_atomic, write_json
from afina.core.layers import not_finite
from afina.lora.merging import merge_in_place
from afina.models.load import Base
from afina.models.model import Packed
from afina.models.reading import stored_dtype
from afina.models.through_transformers import save_model
from afina.runs.facts import base_record, facts_of, save_tokenizer, write_facts
from afina.runs.opening import Adapted
from afina.serving.proof import check_same, logits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
REORDERED = 1e-3  # of the largest logit: what summing in another order may change
# What a base's folder may hold beside its weights and its tokenizer, for those who use it.
_COMPANIONS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")


def merge_checked(base: Base, rows: Sequence[Packed]) -> None:
    """Merges the adapter in `base`, which computes in fp32, in place; a quantised base as it was trained, dequantised.
    Raises `VerificationFailed` where the logits of `rows` are not what they were."""
    before = logits(base, rows)
    merge_in_place(base.model.module)
    check_same(before, logits(base, rows), "merging changes what the adapted model computes", REORDERED)


def dtype_of(base: Base, precision: str | None) -> torch.dtype:
    """The number format called `precision`; by default that of the base's files, bf16 where these are quantised."""
    return DTYPES[precision] if precision else stored_dtype(Path(base.facts.path))


def check_range(module: nn.Module, dtype: torch.dtype) -> None:
    """Raises `SettingsError` where weights are too large for `dtype`."""
    for name, weight in module.named_parameters():
        if not_finite({name: weight.to(dtype)}):
            raise SettingsError(
                f"{NAMES[dtype]} holds numbers up to {torch.finfo(dtype).max:g}, and {name} has larger ones",
                "use --precision bf16 or fp32",
            )


def write_merged(merged: Adapted, source: Path, dtype: torch.dtype, folder: Path, place: Path) -> None:
    """Writes the model that was merged from the adapter in `source` to `folder`, which will lie in `place`: weights in
    `dtype` in files of 5 GB at most, the tokenizer, what its base has beside, and Afina's facts.

    Raises `SettingsError` where `dtype` does not hold the weights, `AdapterError` where what is copied is a link out of
    the base's folder, and `OutputError`."""
    base = merged.base
    check_range(base.model.module, dtype)
    save_model(base.model.module, folder, dtype)
    save_tokenizer(base, folder)
    _template_in_config(folder)
    for name in _COMPANIONS:
        if (file := Path(base.facts.path) / name).is_file():
            copy(file, folder)
    facts: dict[str, Any] = merged.facts or facts_of(base, str(source))  # with what it takes to generate
    facts = facts | {"base": base_record(base), "quantize": None, "merged_from": source.name}
    write_facts(folder, facts, place)


def _template_in_config(folder: Path) -> None:
    """Some programs look for the chat template in tokenizer_config.json alone."""
    template, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file() and config.is_file():
        write_json(config, read_json(config) | {"chat_template": template.read_bytes().decode()})


def copy(file: Path, out: Path) -> None:
    """Copies a file into the folder `out`. Raises `AdapterError` where a link leads out of the file's own folder: what
    is copied may be published."""
    if elsewhere := leads_out(file, file.parent):
        raise AdapterError(f"{file} is a link to {elsewhere}, outside its folder", "remove the link")
    write_atomic(out / file.name, file.read_bytes())
