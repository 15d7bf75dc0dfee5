"""From settings to a base with its data and what is trained in it: the part that training and every search share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.config import changed
from afina.core.device import cache_folder, keep_freed_memory
from afina.core.errors import AdapterError, BaseModelError, DataError, SettingsError
from afina.core.events import Listener, Notice
from afina.core.layers import is_conv1d
from afina.data.files import STANDARD_INPUT
from afina.data.layouts import Kind
from afina.data.load import Dataset, read_parts, render_parts
from afina.data.quality.checks import check
from afina.data.store import lengths
from afina.forecast.machines import this_machine
from afina.forecast.remedies import refuse_what_cannot_fit
from afina.forecast.workload import ONE_ROW, room_for
from afina.lora.config import LoraConfig
from afina.lora.inits import INITS, Needs
from afina.lora.injection import inject
from afina.lora.peft_files import load_adapter, read_config
from afina.measure.outputs import EvaluationSet
from afina.models.footprint import activation_bytes, free_bytes
from afina.models.load import Base, load_base
from afina.models.skeleton import Skeleton, read_skeleton
from afina.runs.facts import adapter_folder, check_base, read_facts
from afina.runs.opening import read_template
from afina.settings import RunSettings
from afina.training.baselines import RATE_AS_FULL, baseline
from afina.training.loop import gradients
from afina.training.loss import mean_loss
from afina.training.settings import Model, Plan, plan

TEXT_TOKENS = 256  # that a model of plain text goes on by
CHECKED = 100_000  # rows that are looked at before training; `afina data check` looks at all
CALIBRATION = 32  # training rows that an init looks at (eva, lora_ga)


@dataclass(frozen=True)
class Assembled:
    """`settings` with everything resolved that the data, the base and its task decide."""

    settings: RunSettings
    base: Base
    data: Dataset
    skeleton: Skeleton | None

    @property
    def cache(self) -> Path:
        return cache_folder(self.settings.cache_dir)

    @property
    def kind(self) -> Kind:
        return self.base.task.kind or self.settings.data.kind or "generation"

    @property
    def max_new_tokens(self) -> int:
        """What the longest answer needs, and some more."""
        return TEXT_TOKENS if self.kind == "text" else room_for(self.data.most_labelled)

    def asked(self) -> EvaluationSet:
        """The rows that are evaluated on: those kept apart, or else the held-out ones."""
        data = self.settings.data
        own = f"{data.path} ({'test split' if data.test else 'held-out split'})"
        source = data.test_path or (None if data.test else data.eval_path) or own
        return EvaluationSet(self.data.test_examples, self.data.test, self.kind, self.max_new_tokens, str(source))


def assemble(settings: RunSettings, listener: Listener) -> Assembled:
    """Reads the data, says what is doubtful about them, loads the base and renders the rows for it. Raises `InputError`."""
    if str(settings.data.path) == STANDARD_INPUT:
        raise DataError(
            "training reads its data again on --resume, and standard input comes once", "write it to a file first"
        )
    if settings.adapter and settings.quantize is None:
        stored = read_facts(adapter_folder(settings.adapter)).get("quantize")
        if stored:
            listener(Notice(f"the base in {stored}, as the adapter was trained"))
            settings = settings.model_copy(update={"quantize": stored})
    parts = read_parts(settings.data, settings.data_seed)  # what is wrong with a file is said before a model is loaded
    for finding in check(settings.data, most=CHECKED).findings:
        if finding.severity == "warning":
            listener(Notice(f"data: {finding.text}", warning=True))
    parts = parts.resolved()
    settings = settings.model_copy(update={"data": parts.settings})
    keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    skeleton = _guarded(settings, parts.answers.classes)
    base = load(settings, parts.answers.classes)
    if base.facts.hub_id:  # a branch may move on: what was loaded is what the run is of
        settings = settings.model_copy(update={"revision": base.facts.revision})
    data = render_parts(parts, base.tokenizer, base.facts.context_length, settings.cache_dir, listener)
    if settings.train.batch_size is None:
        settings = changed(settings, {"train.batch_size": base.task.batch_size})
    return Assembled(settings, base, data, skeleton)


def _guarded(settings: RunSettings, classes: Sequence[str]) -> Skeleton | None:
    """The base by its configuration. Raises `SettingsError` where not even a row of it would fit into memory; None where the
    configuration cannot be read, which loading the base explains."""
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


def planned(settings: RunSettings, base: Base, data: Dataset) -> tuple[Plan, list[str]]:
    """What the rules make of the settings, and their reasons."""
    device = next(base.model.module.parameters()).device
    rows, module = lengths(data.train), base.model.module
    model = Model(
        base.facts.hidden_size,
        activation_bytes(module, base.dtype, int(max(rows)), getattr(module, "fused", None) is not None),
        free_bytes(device),
        base.task,
        settings.method in RATE_AS_FULL,
    )
    return plan(settings.train, rows, model, settings.seed)


def adapt(base: Base, settings: RunSettings, data: Dataset) -> LoraConfig:
    """Puts a new adapter, or the one of `settings.adapter`, into the base; its configuration."""
    module = base.model.module
    heads = base.model.heads
    if settings.method != "lora":
        if settings.lora != LoraConfig() or settings.adapter:
            raise SettingsError(
                f"--method {settings.method} trains no LoRA adapter", "leave --lora.* and --adapter out"
            )
        config = baseline(module, settings.method, settings.last_layers, heads)
        inject(module, config, settings.seed)
        return config
    if settings.adapter is None:
        rows, needs = data.train[:CALIBRATION], INITS[settings.lora.init].needs
        calibrations: dict[Needs, Callable[[], Any]] = {
            "forward": lambda: mean_loss(base, rows),
            "backward": lambda: gradients(base, rows, settings.train.tokens_per_pass),
        }
        lora = settings.lora.saving(heads)  # what is new in the model is trained with the adapter, and saved with it
        originals = _originals(settings, base) if needs == "originals" and settings.quantize else None
        inject(module, lora, settings.seed, calibrations.get(needs), originals)
        return lora
    folder = adapter_folder(settings.adapter)
    given, stored = settings.lora, read_config(folder)
    if given not in (LoraConfig(), stored):
        raise SettingsError(
            f"--adapter {settings.adapter} brings its own LoRA settings (rank {stored.rank}), and --lora.* gives others",
            "leave the --lora.* settings out",
        )
    try:
        if not settings.force:
            check_base(read_facts(folder), base, folder)
        return load_adapter(base.model.module, folder)
    except AdapterError as error:
        raise AdapterError(f"--adapter {settings.adapter}: {error}") from error


def _originals(settings: RunSettings, base: Base) -> Callable[[str], Tensor]:
    """The weights that the quantised layers were made from: those of the base, read again."""
    if settings.quantize == "keep":
        raise SettingsError(
            f"init {settings.lora.init!r} makes up for what quantisation lost, and a GGUF file does not hold that",
            "use --quantize nf4 or int8, or another --lora.init",
        )
    plain = settings.model_copy(update={"quantize": None})
    module = load(plain, base.tokenizer.classes).model.module

    def original(path: str) -> Tensor:
        layer: Any = module.get_submodule(path)
        weight: Tensor = layer.weight
        return weight.T if is_conv1d(layer) else weight

    return original
