"""From settings to a base with its data and what is trained in it: the part that training and every search share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.config import changed
from afina.core.device import (
    cache_folder,
    fitting,
    keep_freed_memory,
    pick_device,
    precision_of,
    set_arithmetic,
    unused_card,
)
from afina.core.errors import AdapterError, BaseModelError, DataError, SettingsError
from afina.core.events import Listener, Notice, ignore
from afina.core.layers import is_conv1d
from afina.core.process import runtime
from afina.data.files import STANDARD_INPUT
from afina.data.files.folders import divided
from afina.data.layouts import Kind
from afina.data.load import Dataset, render_splits
from afina.data.parts import parted
from afina.data.quality.checks import Checker
from afina.data.rows import placed
from afina.data.splits import Splits, read_splits
from afina.data.template import Row
from afina.engine.ops import TORCH
from afina.forecast.machines import this_machine
from afina.forecast.remedies import refuse_what_cannot_fit
from afina.forecast.workload import ONE_ROW, room_for
from afina.lora.config import LoraConfig
from afina.lora.inits import INITS, Needs
from afina.lora.injection import inject
from afina.lora.peft_config import read_config
from afina.lora.peft_files import load_adapter
from afina.measure.outputs import EvaluationSet
from afina.models.footprint import activation_bytes, free_bytes
from afina.models.load import Base, load_base
from afina.models.model import Quantize
from afina.models.skeleton import Skeleton, read_skeleton
from afina.models.templates import read_template
from afina.runs.facts import adapter_folder, check_base, load_name, read_facts
from afina.settings import Facts, Resolved, RunSettings, adapter_config, resolve
from afina.training.accumulation import gradients
from afina.training.baselines import baseline
from afina.training.loss import mean_loss
from afina.training.objectives import OBJECTIVES
from afina.training.optimizer import check_factors

TEXT_TOKENS = 256  # new tokens with which a model of plain text continues a prompt
CHECKED = 100_000  # rows that are looked at before training; `afina data check` looks at all
CALIBRATION = 32  # training rows that an init looks at (eva, lora_ga)


@dataclass(frozen=True)
class Assembled:
    """What a run is put together from: its settings as a user gave them, the base, the rows rendered for it, and what
    was recognised in their file. `skeleton` is the base by its configuration, where that can be read.
    """

    settings: RunSettings
    base: Base
    data: Dataset
    splits: Splits
    skeleton: Skeleton | None

    def resolve(self, settings: RunSettings) -> Resolved:
        """The run's settings, or others for the same base and rows, with nothing left open. The base has no adapter
        yet.

        Raises `AdapterError` and `SettingsError`.
        """
        return resolve(settings, self._facts(settings, self._trained(settings)))

    def adapt(self, settings: RunSettings, listener: Listener = ignore) -> Resolved:
        """Puts into the base what `settings` train: a new adapter, the one that is trained further, or a baseline.
        The same settings with nothing left open. Raises `AdapterError` and `SettingsError`.
        """
        trained = self._trained(settings)
        _put_in(self, settings, adapter_config(settings, self.base.model.heads, trained), listener)
        check_factors(self.base.model.module, settings.train)
        return resolve(settings, self._facts(settings, trained))

    def _trained(self, settings: RunSettings) -> LoraConfig | None:
        """What is trained, where the settings of LoRA do not say it."""
        if settings.method != "lora":
            return baseline(self.base.model.module, settings.method, settings.last_layers, self.base.model.heads)
        return read_config(adapter_folder(settings.adapter)) if settings.adapter else None

    def _facts(self, settings: RunSettings, trained: LoraConfig | None) -> Facts:
        """Memory is looked at now: with what is in the base by now."""
        base, module, objective = self.base, self.base.model.module, OBJECTIVES[settings.train.objective]
        lengths = objective.lengths(objective.units(self.data.train))
        return Facts(
            task=base.task,
            lengths=lengths,
            labelled=self.data.train.labelled / len(self.data.train),
            hidden_size=base.facts.hidden_size,
            activation_bytes=activation_bytes(
                module, base.dtype, int(max(lengths)), getattr(module, "ops", TORCH) is not TORCH
            ),
            free_bytes=free_bytes(next(module.parameters()).device),
            precision=precision_of(base.dtype),
            precision_reason=base.dtype_reason,
            threads=torch.get_num_threads(),
            base=load_name(base, settings.base),
            revision=base.facts.revision if base.facts.hub_id else None,
            heads=base.model.heads,
            trained=trained,
            quantize=_quantised_as(settings),
            kind=self.splits.kind,
            layout=self.splits.notes.layout,
            encoding=self.splits.encoding,
            files=_files(settings),
        )

    @property
    def cache(self) -> Path:
        return cache_folder(self.settings.cache_dir)

    @property
    def kind(self) -> Kind:
        return self.base.task.kind or self.splits.kind

    @property
    def max_new_tokens(self) -> int:
        """What the longest answer needs, and some more."""
        return TEXT_TOKENS if self.kind == "text" else room_for(self.data.most_labelled)

    def asked(self) -> EvaluationSet:
        """The rows that are evaluated on: those of the test split, or else the held-out ones."""
        data = self.settings.data
        named = data.test_path or (None if data.test else data.eval_path)
        path = (named or data.path).absolute()
        source = path.name if named else f"{path.name} ({'test split' if data.test else 'held-out split'})"
        examples = [replace(each, location=placed(each.location, path)) for each in self.data.examples]
        return EvaluationSet(examples, self.data.evaluated, self.kind, self.max_new_tokens, source)


def assemble(settings: RunSettings, listener: Listener) -> Assembled:
    """Reads the data, says what is doubtful about them, loads the base and renders the rows for it. Raises
    `InputError`.
    """
    if str(settings.data.path) == STANDARD_INPUT:
        raise DataError(
            "training reads its data again on --resume, and standard input comes once", "write it to a file first"
        )
    settings = settings.model_copy(update={"data": parted(settings.data)})
    if stored := _quantised_as(settings):
        listener(Notice(f"the base is quantised to {stored}, as when the adapter was trained"))
    checker = Checker(most=CHECKED)  # what is wrong with a file is said before a model is loaded
    splits = read_splits(settings.data, settings.data_seed, checker, listener).resolved()
    for finding in (*checker.findings(), *checker.near_leaks()):
        if finding.severity != "note":
            listener(Notice(f"data: {finding.text}", warning=True))
    keep_freed_memory()
    if runtime.spins:
        listener(
            Notice(
                "torch was imported before afina, so that its threads spin while they wait, which makes training beside"
                " other programs several times slower: import afina first, or set OMP_WAIT_POLICY=passive"
            )
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    if not settings.device and (unused := unused_card()):
        listener(Notice(f"{unused.problem}: {unused.remedy}; or give --device cpu", warning=True))
    if settings.train.deterministic and device.type == "cpu":
        listener(Notice("--train.deterministic changes nothing here: the processor adds in one order always"))
    set_arithmetic(device, settings.tf32, settings.train.deterministic)
    quantised = changed(settings, {"quantize": stored or settings.quantize})
    skeleton = _guarded(quantised, splits.answers.classes)
    base = load(quantised, splits.answers.classes)
    data = render_splits(splits, base.tokenizer, base.facts.context_length, settings.cache_dir, listener)
    return Assembled(settings, base, data, splits, skeleton)


def _quantised_as(settings: RunSettings) -> Quantize | None:
    """How the base was kept when the adapter that is trained further was trained, where the settings do not say
    otherwise.
    """
    if settings.adapter is None or settings.quantize:
        return None
    found: Quantize | None = read_facts(adapter_folder(settings.adapter)).get("quantize")
    return found


def _files(settings: RunSettings) -> dict[str, Path]:
    """The absolute paths of the files that the settings name."""
    data = settings.data
    named = {"data.eval_path": data.eval_path, "data.test_path": data.test_path, "template": settings.template}
    found = {name: path.absolute() for name, path in named.items() if path}
    here = data.path.exists() or divided(data.path) is not None  # else a data set of the hub
    return {"data.path": data.path.absolute(), **found} if here else found


def _guarded(settings: RunSettings, classes: Sequence[str]) -> Skeleton | None:
    """The base by its configuration. Raises `SettingsError` where not even a row of it would fit into memory; None
    where the configuration cannot be read, which loading the base explains.
    """
    cache = cache_folder(settings.cache_dir)
    try:
        found = read_skeleton(
            settings.base, revision=settings.revision, cache_dir=cache, task=settings.task, classes=classes
        )
    except BaseModelError:
        return None
    refuse_what_cannot_fit(
        found, settings, ONE_ROW, this_machine(cache, settings.device, settings.precision, False), cache
    )
    return found


def load(settings: RunSettings, classes: Sequence[str]) -> Base:
    remedy = "`afina fit BASE DATA` says what would, and which settings help"
    with fitting(pick_device(settings.device), f"base {settings.base!r}", remedy):
        return load_base(
            settings.base,
            revision=settings.revision,
            precision=settings.precision,
            device=settings.device,
            cache_dir=settings.cache_dir,
            task=settings.task,
            classes=classes,
            quantize=settings.quantize,
            template=read_template(settings.template),
        )


def _put_in(run: Assembled, settings: RunSettings, config: LoraConfig, listener: Listener) -> None:
    """Injects what `config` says into the run's base, or loads the adapter that is trained further."""
    base, module = run.base, run.base.model.module
    if settings.adapter:
        folder = adapter_folder(settings.adapter)
        try:
            if not settings.force:
                check_base(read_facts(folder), base, folder)
            load_adapter(module, folder, listener)
        except AdapterError as error:
            raise AdapterError(f"--adapter {settings.adapter}: {error}") from error
        return
    rows, needs = run.data.train[:CALIBRATION], INITS[config.init].needs
    objective = OBJECTIVES[settings.train.objective]
    calibrations: dict[Needs, Callable[[], Any]] = {
        "forward": lambda: _read_each(base, rows),
        "backward": lambda: gradients(base, objective.units(rows), objective, settings.train.tokens_per_pass),
    }
    originals = _originals(settings, base) if needs == "originals" and settings.quantize else None
    inject(module, config, settings.seed, calibrations.get(needs), originals)


def _read_each(base: Base, rows: Sequence[Row]) -> None:
    """Passes over the rows of which nothing is shared: what looks on counts their tokens."""
    sharing, base.model.sharing = base.model.sharing, False
    try:
        mean_loss(base, rows)
    finally:
        base.model.sharing = sharing


def _originals(settings: RunSettings, base: Base) -> Callable[[str], Tensor]:
    """The weights that the quantised layers were made from: those of the base, read again."""
    if settings.quantize == "keep":
        raise SettingsError(
            f"init {settings.lora.init!r} makes up for what quantisation lost, and a GGUF file does not hold that",
            "use --quantize nf4 or int8, or another --lora.init",
        )
    module = load(
        changed(settings, {"quantize": None, "revision": base.facts.revision or settings.revision}),
        base.tokenizer.classes,
    ).model.module

    def original(path: str) -> Tensor:
        layer: Any = module.get_submodule(path)
        weight: Tensor = layer.weight
        return weight.T if is_conv1d(layer) else weight

    return original
