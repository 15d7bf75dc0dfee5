"""The workload of a training whose base or data are not here: counted as far as can be, else estimated."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from afina.core.errors import InputError, counted
from afina.core.events import Listener, Notice
from afina.data.load import render_splits
from afina.data.settings import DataSettings
from afina.data.splits import Splits, character_counts
from afina.forecast.estimate import forecast_training
from afina.forecast.machines import this_machine
from afina.forecast.workload import CHARACTERS, Workload, room_for, workload_of
from afina.models.load import load_tokenizer
from afina.models.skeleton import Skeleton, read_skeleton
from afina.models.sources.catalogue import Entry
from afina.models.templates import read_template
from afina.settings import RunSettings
from afina.training.settings import TrainingSettings

Texts = list[tuple[int, int]]  # characters of each row: of the prompt, and of the answer
NO_DATA = Path("no-data")  # in the place of a file, where none was given
_ROWS, _TOKENS = 1_000, 256  # rows that are assumed then, and tokens of each
_TEMPLATE = 12  # tokens that a chat template adds to a row


def expected_workload(
    base: Skeleton, settings: RunSettings, splits: Splits | None, listener: Listener, texts: Texts | None = None
) -> Workload:
    """The rows of `splits` in tokens: counted where the base's tokenizer is on this disk, else estimated by characters.

    `texts` are their characters, read where they are not given. Without `splits`, rows of a typical length are assumed.
    """
    if splits is None:
        return typical_workload(settings.data.max_length)
    if base.is_local:
        tokenizer, context = load_tokenizer(
            settings.base,
            base.task,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            classes=splits.answers.classes,
            template=read_template(settings.template),
        )
        data = render_splits(splits, tokenizer, context, settings.cache_dir, listener)
        for line in data.notices:
            listener(Notice(line, warning=True))
        return workload_of(data, room_for(data.most_labelled))
    texts = texts or character_counts(splits)
    most = min(settings.data.max_length or 1 << 30, base.context_length)
    lengths = [min(most, round((prompt + answer) / CHARACTERS) + _TEMPLATE) for prompt, answer in texts]
    answers = [1.0 if base.task.needs_classes else answer / CHARACTERS + 2 for _, answer in texts]
    mean = sum(lengths) / len(lengths)
    answer = sum(answers) / len(answers)
    held_out = int(splits.held_out.sum())
    workload = Workload(
        lengths=lengths,
        labelled=min(1.0, answer / mean),
        held_out=round(mean * held_out),
        asked=int(splits.test.sum()) or held_out,
        prompt=max(1.0, mean - answer),
        longest=max(lengths),
        answer=answer,
        most_new=room_for(max(answers)),
    )
    return replace(
        workload,
        counted=f"estimated by the length of the texts, because the tokenizer of {base.name} is not here; "
        "in a language that it hardly knows there may be twice as many",
    )


def typical_workload(max_length: int | None = None) -> Workload:
    """What is assumed where no data were given."""
    tokens = min(_TOKENS, max_length or _TOKENS)
    half, asked = tokens // 2, _ROWS // 10
    return Workload(
        lengths=[tokens] * _ROWS,
        labelled=0.5,
        held_out=asked * tokens,
        asked=asked,
        prompt=half,
        longest=half,
        answer=half,
        most_new=2 * half,
        counted=f"no data were given: {_ROWS:,} rows of {counted(tokens, 'token')} are assumed",
    )


def least_memory(entries: Iterable[Entry], cache: Path) -> dict[str, int]:
    """The bytes in which LoRA can adapt each of the catalogue's entries on this machine, whatever is free: for rows of
    a typical length, with activations recomputed. Those of an architecture that this version of transformers does not
    know are left out. It takes some tenths of a second for each."""
    machine, workload = this_machine(cache, measure=False), typical_workload()
    settings = RunSettings(data=DataSettings(path=NO_DATA), train=TrainingSettings(checkpoint_activations=True))
    found = {}
    for entry in entries:
        with suppress(InputError):
            base = read_skeleton(entry.name, cache_dir=cache, classes=("", ""))
            found[entry.name] = forecast_training(base, settings, workload, machine).memory.total
    return found


def bases_that_fit(entries: Iterable[Entry], cache: Path) -> dict[str, int]:
    """`least_memory` of the entries for which it is free here."""
    available = this_machine(cache, measure=False).available
    needs = least_memory((entry for entry in entries if 2 * entry.parameters <= available), cache)
    return {name: bytes for name, bytes in needs.items() if bytes <= available}
