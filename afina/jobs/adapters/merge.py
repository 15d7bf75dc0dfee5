"""`adapters merge`: fold an adapter into its base, as a model of its own."""

from pathlib import Path
from typing import Any, Literal

import torch

from afina.core.config import Result, setting
from afina.core.errors import AdapterError, SettingsError
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.core.layers import not_finite
from afina.core.process.temporary import new_folder
from afina.jobs._opening import OpenSettings
from afina.jobs.adapters._files import copy
from afina.jobs.adapters._proof import check_same, logits, sample
from afina.lora.merging import merge_in_place
from afina.measure.verification import relative_difference
from afina.models.load import Base
from afina.models.reading import stored_dtype
from afina.models.through_transformers import cast, save_model
from afina.runs.facts import base_record, facts_of, is_merged, save_tokenizer, write_facts
from afina.runs.folder import check_new
from afina.runs.opening import open_run

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_REORDERED = 1e-3  # of the largest logit: what summing in another order may change
# What a base's folder may hold beside its weights and its tokenizer, for those who use it.
_COMPANIONS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")


class MergeAdapterSettings(OpenSettings):
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Number format of the merged weights; by default that of the base's own (bf16 where that is quantised)."""


class MergeAdapterResult(Result):
    model: Path
    """Folder of the merged model, in transformers' format."""
    precision: str
    """Number format of its weights."""
    differences: dict[str, float]
    """By the number format computed in: the largest difference of the logits of the model read back from its files,
    over the largest logit, from those of the adapter on its unquantised base in fp32."""
    largest_difference_of_logits: float
    """The same in fp32, but from the adapter as it was trained: on its quantised base, where it was quantised."""


def merge(settings: MergeAdapterSettings, listener: Listener = ignore) -> MergeAdapterResult:
    """Writes the base with the adapter folded in to `out`, in transformers' format, reads it back, and compares.

    A base that was quantised in training is merged in full precision. Raises `AdapterError`, `OutputError`, and
    `VerificationFailed` where what is read is not what was merged; then nothing is left in `out`.
    """
    run, out = settings.run, settings.out
    check_new(out)
    if is_merged(run):
        raise AdapterError(f"{run} is merged already: there is no adapter in it", "give the run it came from")
    adapted = settings.open(listener, exact=True)
    base, module = adapted.base, adapted.base.model.module
    dtype = _DTYPES[settings.precision] if settings.precision else stored_dtype(Path(base.facts.path))
    rows = sample(base, run / "predictions.jsonl")
    exact = logits(base, rows)
    trained = logits(settings.open().base, rows) if adapted.facts.get("quantize") else exact
    merge_in_place(module)
    check_same(exact, logits(base, rows), "merging changes what the adapted model computes", _REORDERED)
    _round(module, dtype)
    rounded = logits(base, rows)
    cast(module, dtype)
    facts = adapted.facts or facts_of(base, str(run))  # with what it takes to generate
    facts = facts | {"base": base_record(base), "quantize": None, "merged_from": run.name}
    with new_folder(out) as folder:
        _write(base, facts, folder, out)
        del base, module, adapted  # before the merged model comes
        read = open_run(folder, device=settings.device, cache_dir=settings.cache_dir, exact=True).base
        found = logits(read, rows)
        check_same(rounded, found, "the merged model, written and read back, is another")
        differences = {"fp32": relative_difference(exact, found)}
        if dtype != torch.float32:
            cast(read.model.module, dtype)
            differences[_NAMES[dtype]] = relative_difference(exact, logits(read, rows))
    return MergeAdapterResult(
        model=out,
        precision=_NAMES[dtype],
        differences=differences,
        largest_difference_of_logits=relative_difference(trained, found),
    )


def _round(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Rounds the weights to `dtype`, kept in fp32. Raises `SettingsError` where they are too large for it."""
    cast(module, dtype)
    if broken := not_finite(dict(module.named_parameters())):
        raise SettingsError(
            f"{_NAMES[dtype]} holds numbers up to {torch.finfo(dtype).max:g}, and {broken[0]} has larger ones",
            "use --precision bf16 or fp32",
        )
    cast(module, torch.float32)


def _write(base: Base, facts: dict[str, Any], folder: Path, place: Path) -> None:
    """The model that will lie in `place`, with its tokenizer, what its base has beside, and Afina's facts."""
    save_model(base.model.module, folder)
    save_tokenizer(base, folder)
    for name in _COMPANIONS:
        if (source := Path(base.facts.path) / name).is_file():
            copy(source, folder)
    write_facts(folder, facts, place)


JOB = Job.of(merge)
