"""`adapters merge`: fold an adapter into its base, as a model of its own."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from afina.core.config import Result, setting
from afina.core.errors import AdapterError, SettingsError, VerificationFailed, writing
from afina.core.events import Listener, ignore
from afina.core.files import read_jsonl, write_atomic, write_json
from afina.core.job import Job
from afina.core.layers import not_finite
from afina.engine.ops import Segments
from afina.jobs._opening import OpenSettings
from afina.lora.merging import merge_in_place
from afina.measure.verification import relative_difference
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX, Packed
from afina.models.reading import stored_dtype
from afina.models.through_transformers import cast, save_model
from afina.runs.facts import facts_of, is_merged, save_tokenizer
from afina.runs.folder import check_new
from afina.runs.opening import open_run

_PROMPTS = 8  # on which the merged model is compared with the adapted one
_TOKENS = 128  # of the vocabulary, which are looked at beside them
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Largest differences of logits in fp32, over the largest logit: of sums in another order, and of equal sums.
_MERGING, _WRITING = 1e-3, 1e-4
# What a base's folder may hold beside its weights and its tokenizer, for those who use it.
_COMPANIONS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")


class MergeAdapterSettings(OpenSettings):
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Number format of the merged weights; by default that of the base's own (bf16 for a quantised GGUF file)."""


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
    rows = _rows(base, run / "predictions.jsonl")
    exact = _logits(base, rows)
    trained = _logits(settings.open().base, rows) if adapted.facts.get("quantize") else exact
    merge_in_place(module)
    _check(exact, _logits(base, rows), _MERGING, "merging changes what the adapted model computes")
    _round(module, dtype)
    rounded = _logits(base, rows)
    cast(module, dtype)
    facts = adapted.facts or facts_of(base, str(run))  # with what it takes to generate
    facts = facts | {"base": base.facts.card(), "quantize": None, "merged_from": str(run)}
    with _appearing(out) as folder:
        _write(base, facts, folder)
        del base, module, adapted  # before the merged model comes
        read = open_run(folder, device=settings.device, cache_dir=settings.cache_dir, exact=True).base
        found = _logits(read, rows)
        _check(rounded, found, _WRITING, "the merged model, written and read back, is another")
        differences = {"fp32": relative_difference(exact, found)}
        if dtype != torch.float32:
            cast(read.model.module, dtype)
            differences[_NAMES[dtype]] = relative_difference(exact, _logits(read, rows))
    return MergeAdapterResult(
        model=out,
        precision=_NAMES[dtype],
        differences=differences,
        largest_difference_of_logits=relative_difference(trained, found),
    )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder for the files of `out`, which are there when the block has ended well, and not before."""
    fresh = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out))
    try:
        yield temporary
        with writing(out):
            for file in temporary.iterdir():
                file.chmod(0o644)
                file.replace(out / file.name)
            temporary.rmdir()
    except BaseException:
        shutil.rmtree(out if fresh else temporary, ignore_errors=True)
        raise


def _rows(base: Base, predictions: Path) -> list[Packed]:
    """The beginnings of some prompts in the file `predictions` (a greeting, where there is none), and tokens from all
    over the vocabulary."""
    texts = [row["prompt"] for row in read_jsonl(predictions)[:_PROMPTS]] if predictions.exists() else ["Hello."]
    tokenizer, longest = base.tokenizer, min(_TOKENS, base.facts.context_length)
    special = set(tokenizer.inner.all_special_ids)
    last = min(len(tokenizer.inner), base.facts.vocabulary) - 1
    spread = torch.linspace(0, last, min(longest, last + 1)).long().tolist()
    encode = tokenizer.encode if base.task.continues_text else tokenizer.encode_input
    rows = [*map(encode, texts), [token for token in spread if token not in special]]
    device = next(base.model.module.parameters()).device
    found = []
    for row in [row for row in rows if len(row) > 1]:  # an encoder-decoder needs something to read, and an answer
        ids = torch.tensor(row[:longest], device=device)
        labels = ids.clone()
        if not base.task.continues_text:  # the last token stands for the answer
            labels[:-1] = IGNORE_INDEX
        found.append(Packed(ids, labels, Segments((0, len(ids)))))
    return found


@torch.no_grad()
def _logits(base: Base, rows: list[Packed]) -> Tensor:
    """Of all rows, (N, vocabulary), in fp32."""
    return torch.cat([base.model.label_logits(row).float().cpu() for row in rows])


def _check(expected: Tensor, found: Tensor, allowed: float, what: str) -> None:
    difference = relative_difference(expected, found)
    if not difference <= allowed:
        raise VerificationFailed(
            f"{what}: the logits differ by {difference:.2g} of the largest, allowed is {allowed:g}",
            "nothing was written; please report it, with the adapter's adapter_config.json and the base's config.json",
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


def _write(base: Base, facts: dict[str, Any], folder: Path) -> None:
    """The model with its tokenizer, what its base has beside, and Afina's facts."""
    save_model(base.model.module, folder)
    save_tokenizer(base, folder)
    for name in _COMPANIONS:
        if (source := Path(base.facts.path) / name).is_file():
            write_atomic(folder / name, source.read_bytes())
    write_json(folder / "afina.json", facts)


JOB = Job.of(merge)
