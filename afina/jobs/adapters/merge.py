"""`adapters merge`: fold an adapter into its base, as a model of its own."""

from pathlib import Path
from typing import Literal

import torch

from afina.core.config import Result, setting
from afina.core.errors import AdapterError
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.core.process.temporary import new_folder
from afina.jobs._opening import OpenSettings
from afina.measure.verification import relative_difference
from afina.models.through_transformers import cast
from afina.runs.facts import is_merged
from afina.runs.folder import check_new
from afina.runs.opening import open_run
from afina.serving.merged import NAMES, dtype_of, merge_checked, write_merged
from afina.serving.proof import check_same, logits, sample


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
    over the largest logit, from those of the adapter on the base that it was trained on (quantised, where that was), in
    fp32."""


def merge(settings: MergeAdapterSettings, listener: Listener = ignore) -> MergeAdapterResult:
    """Writes the base with the adapter folded in to `out`, in transformers' format, reads it back, and compares.

    A base that was quantised in training is merged as it was then, dequantised. Raises `AdapterError`, `OutputError`,
    and `VerificationFailed` where what is read is not what was merged; then nothing is left in `out`.
    """
    run, out = settings.run, settings.out
    check_new(out)
    if is_merged(run):
        raise AdapterError(f"{run} is merged already: there is no adapter in it", "give the run it came from")
    adapted = settings.open(listener, exact=True)
    base, module = adapted.base, adapted.base.model.module
    dtype = dtype_of(base, settings.precision)
    rows = sample(base, run / "predictions.jsonl")
    exact = logits(base, rows)
    merge_checked(base, rows)
    with new_folder(out) as folder:
        write_merged(adapted, run, dtype, folder, out)
        for each in (dtype, torch.float32):  # what the files hold
            cast(module, each)
        rounded = logits(base, rows)
        del base, module, adapted  # before the merged model comes
        read = open_run(folder, device=settings.device, cache_dir=settings.cache_dir, exact=True).base
        found = logits(read, rows)
        check_same(rounded, found, "the merged model, written and read back, is another")
        differences = {"fp32": relative_difference(exact, found)}
        if dtype != torch.float32:
            cast(read.model.module, dtype)
            differences[NAMES[dtype]] = relative_difference(exact, logits(read, rows))
    return MergeAdapterResult(model=out, precision=NAMES[dtype], differences=differences)


JOB = Job.of(merge)
