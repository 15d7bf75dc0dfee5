"""`adapters merge`: fold an adapter into its base, as a model of its own."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from afina.core.config import Result, Settings, setting
from afina.core.errors import AdapterError
from afina.core.events import Listener, ignore
from afina.core.files import read_jsonl, storing, write_json
from afina.core.job import Job
from afina.data.template import prompt_ids
from afina.engine.ops import Segments
from afina.lora.merging import merge as merge_module
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX, Model, Packed
from afina.models.through_transformers import as_transformers, quiet
from afina.runs.facts import facts_of, is_merged, save_tokenizer
from afina.runs.folder import check_new
from afina.runs.opening import open_run

_PROMPTS = 8  # on which the merged model is compared with the adapted one


class MergeAdapterSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder of a run or of an adapter."""
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    device: str | None = None
    """cpu, cuda, mps; by default the best that is there."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""
    base: str | None = None
    """The base, where it is not where it was in training."""
    force: bool = False
    """Merge into a base that the adapter was not made for."""


class MergeAdapterResult(Result):
    model: Path
    """Folder of the merged model, in transformers' format."""
    largest_difference_of_logits: float
    """From the adapted model, on prompts of the run, over the largest logit."""


def merge(settings: MergeAdapterSettings, listener: Listener = ignore) -> MergeAdapterResult:
    """Writes the base with the adapter folded in to `out`, in transformers' format, and compares the two.

    A base that was quantised in training is merged in full precision. Raises `AdapterError`, `OutputError`.
    """
    run, out = settings.run, settings.out
    check_new(out)
    if is_merged(run):
        raise AdapterError(f"{run} is merged already: there is no adapter in it", "give the run it came from")
    opening: dict[str, Any] = settings.model_dump(include={"device", "cache_dir", "base", "force"})
    adapted = open_run(run, **opening)
    model = adapted.base
    quantised = bool(adapted.facts.get("quantize"))
    into = open_run(run, **opening, dequantise=True).base if quantised else model
    merged: Any = merge_module(into.model.module)
    difference = _difference(model, merged, run / "predictions.jsonl")
    plain = as_transformers(merged)
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as temporary, quiet():
            plain.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                file.chmod(0o644)
                file.replace(out / file.name)
    save_tokenizer(model, out)
    facts = adapted.facts or facts_of(into, str(run))  # with what it takes to generate
    write_json(out / "afina.json", facts | {"base": into.facts.card(), "quantize": None, "merged_from": str(run)})
    return MergeAdapterResult(model=out, largest_difference_of_logits=difference)


def _difference(adapted: Base, merged: Any, predictions: Path) -> float:
    """The largest difference of logits on some prompts in the file `predictions` (a greeting, where there is none)."""
    texts = [row["prompt"] for row in read_jsonl(predictions)[:_PROMPTS]] if predictions.exists() else ["Hello."]
    module: Any = adapted.model.module
    difference = 0.0
    with torch.no_grad():
        for text in texts:
            row = prompt_ids(adapted.tokenizer, [{"role": "user", "content": text}])
            ids = torch.tensor(row, device=next(module.parameters()).device)
            labels = ids.clone()
            if not adapted.task.continues_text:  # the last token stands for the answer
                labels[:-1] = IGNORE_INDEX
            packed = Packed(ids, labels, Segments((0, len(row))))
            before, after = (_with(adapted.model, each).label_logits(packed).float() for each in (module, merged))
            difference = max(difference, float((before - after).abs().max() / before.abs().max()))
    return difference


def _with(model: Model, module: Any) -> Model:
    other = copy.copy(model)
    other.module = module
    return other


JOB = Job.of(merge)
