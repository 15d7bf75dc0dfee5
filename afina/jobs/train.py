"""From a file of examples to an adapter that was verified and evaluated."""

import gc
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.base.forecast import activation_bytes, free_bytes
from afina.base.load import Base, load_base
from afina.base.model import DecoderModel, TransformersModel
from afina.base.whole import ClassifierModel, Seq2SeqModel
from afina.core.config import build, merge, read_yaml
from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, DataError, InputError, Interrupted, SettingsError
from afina.core.events import Done, Event, Listener, MetricsFile, Notice, forget_after, ignore
from afina.core.files import write_atomic, write_json, write_jsonl, write_yaml
from afina.core.layers import is_conv1d
from afina.data.check import check
from afina.data.files import STANDARD_INPUT
from afina.data.load import Dataset, read_parts, render_parts
from afina.data.store import lengths
from afina.jobs.runs import (
    RunFolder,
    adapter_folder,
    check_base,
    check_folder,
    facts_of,
    read_facts,
    read_template,
    record,
    save_tokenizer,
)
from afina.jobs.settings import RunSettings
from afina.lora.adapter import load_adapter, read_config, save_adapter
from afina.lora.config import LoraConfig
from afina.lora.injection import inject, trainable_parameters
from afina.measure.evaluation import Evaluation, evaluate_adapted
from afina.measure.outcome import Questions
from afina.measure.report import write_report
from afina.measure.verification import Verification, probe, verify
from afina.training.baselines import RATE_AS_FULL, baseline
from afina.training.checkpoint import State, fingerprint, read_latest
from afina.training.loop import Trainer, gradients
from afina.training.loss import mean_loss
from afina.training.settings import CLASSIFIER_BATCH_SIZE, METHOD_NAMES, Model, Plan, plan
from afina.version import __version__

CHECKPOINTS = "checkpoints"
_TASKS: dict[type, tuple[str, str]] = {  # ours, and PEFT's task_type
    DecoderModel: ("causal", "CAUSAL_LM"),
    TransformersModel: ("causal", "CAUSAL_LM"),
    ClassifierModel: ("classify", "SEQ_CLS"),
    Seq2SeqModel: ("seq2seq", "SEQ_2_SEQ_LM"),
}
CHECKED = 100_000  # rows that are looked at before training; `afina data check` looks at all
TEXT_TOKENS = 256  # that a model of plain text goes on by
CALIBRATION = 32  # training rows that the starts eva and lora_ga look at


@dataclass(frozen=True)
class TrainResult:
    """Where everything lies, and how the adapted model does on the held-out rows."""

    folder: Path
    adapter: Path
    report: Path
    prompt: str | None
    evaluation: Evaluation
    verification: Verification


def train(settings: RunSettings, listener: Listener = ignore) -> TrainResult:
    """Trains a LoRA adapter as `settings` say, checks what was saved, and evaluates it against the base.

    Raises `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    check_folder(settings.folder, settings.overwrite)
    return _train(settings, listener, RunFolder(settings.folder), resuming=False)


def resume(folder: Path | str, listener: Listener = ignore) -> TrainResult:
    """Goes on with the run in `folder`, which was killed or interrupted, with the settings it recorded.

    On the same machine it ends with the adapter that it would have had, bit for bit. A run that was killed before its first
    checkpoint begins again. Raises as `train` does, also where the run is complete or its data are not what they were.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(f"--resume {folder} holds no run", "give the folder that `afina train` wrote (its --out)")
    if (folder / "evaluation.json").exists():
        raise InputError(
            f"--resume {folder}: this run is complete",
            "train further with `afina train DATA --adapter RUN --out OTHER`",
        )
    settings = build(RunSettings, merge(read_yaml(config), {"out": folder}))
    place = RunFolder(folder)
    place.keep()
    return _train(settings, listener, place, resuming=True)


def _train(settings: RunSettings, listener: Listener, place: RunFolder, resuming: bool) -> TrainResult:
    folder = settings.folder
    if str(settings.data.path) == STANDARD_INPUT:
        raise DataError(
            "training reads its data again on --resume, and standard input comes once", "write it to a file first"
        )
    if settings.adapter and settings.quantize is None:
        stored = read_facts(adapter_folder(settings.adapter)).get("quantize")
        if stored:
            listener(Notice(f"the base in {stored}, as the adapter was trained"))
            settings = settings.model_copy(update={"quantize": stored})
    parts = read_parts(settings.data, settings.seed)  # what is wrong with a file is said before a model is loaded
    for finding in check(settings.data, most=CHECKED).findings:
        if finding.severity == "warning":
            listener(Notice(f"data: {finding.text}", warning=True))
    parts = parts.resolved()
    settings = settings.model_copy(update={"data": parts.settings})
    keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    base = _load(settings, parts.answers.classes)
    data = render_parts(parts, base, settings.cache_dir, listener)
    classifier = isinstance(base.model, ClassifierModel)
    if classifier:
        settings = _for_classifier(settings)
    lora = _adapt(base, settings, data)
    device = next(base.model.module.parameters()).device
    whole = settings.method in RATE_AS_FULL
    model = Model(base.facts.hidden_size, activation_bytes(base), free_bytes(device), classifier, whole)
    steps, reasons = plan(settings.train, lengths(data.train), model, settings.seed)
    reasons = [f"{base.dtype} for the base: {base.dtype_reason}".replace("torch.", ""), *reasons]
    run = _Run(settings, base, data, lora, steps, reasons, place)
    run.announce(listener)
    with place.held():
        try:
            done = run.train(listener, resuming)
        except BaseException:
            run.place.take_back()
            raise
        if done.reason == "interrupted":
            write_report(folder)
            raise Interrupted(
                f"stopped after step {done.steps} of {steps.steps}; the adapter of that step is in {run.adapter}\n"
                f"  → `afina train --resume {folder}` goes on"
            )
        trained, facts = run.trained, run.facts
        del base, run  # the trained model goes before a fresh one comes
        gc.collect()
        try:
            return _finish(settings, data, facts, trained, listener)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted after training; the adapter in {folder / 'adapter'} is complete, but not evaluated\n"
                f"  → `afina train --resume {folder}` evaluates it"
            ) from None


def _for_classifier(settings: RunSettings) -> RunSettings:
    """The settings with a classifier's batch size."""
    if settings.train.batch_size is not None:
        return settings
    train = settings.train.model_copy(update={"batch_size": CLASSIFIER_BATCH_SIZE})
    return settings.model_copy(update={"train": train})


def _finish(
    settings: RunSettings, data: Dataset, facts: dict[str, Any], trained: Tensor, listener: Listener
) -> TrainResult:
    folder = settings.folder
    listener(Notice("reading the adapter back into a fresh base, and comparing"))
    fresh = _load(settings, facts["classes"])
    load_adapter(fresh.model.module, folder / "adapter")
    verification = verify(fresh, data.held_out, trained)
    listener(
        Notice(
            f"verified: the logits of the adapter on disk differ by {verification.from_training:.2g} from training's, "
            f"and by {verification.from_base:.2g} from the base's"
        )
    )
    apart = settings.data
    own = f"{apart.path} ({'part kept apart' if apart.test else 'held-out part'})"
    source = str(apart.test_path or (own if apart.test else apart.eval_path) or own)
    asked = Questions(data.test_examples, data.test, facts["kind"], facts["max_new_tokens"], source)
    evaluation = evaluate_adapted(fresh, asked, listener, cache_dir=settings.cache_dir)
    record(folder, evaluation)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return TrainResult(folder, folder / "adapter", write_report(folder), settings.data.prompt, evaluation, verification)


def _load(settings: RunSettings, classes: Sequence[str]) -> Base:
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


def _adapt(base: Base, settings: RunSettings, data: Dataset) -> LoraConfig:
    """Puts a new adapter, or the one of `settings.adapter`, into the base; its configuration."""
    module = base.model.module
    heads = base.model.heads if isinstance(base.model, ClassifierModel) else ()
    if settings.method != "lora":
        if settings.lora != LoraConfig() or settings.adapter:
            raise SettingsError(
                f"--method {settings.method} trains no LoRA adapter", "leave --lora.* and --adapter out"
            )
        config = baseline(module, settings.method, settings.last_layers, heads)
        inject(module, config, settings.seed)
        return config
    if settings.adapter is None:
        rows = data.train[:CALIBRATION]

        def calibrate() -> None:
            if settings.lora.init == "lora_ga":
                gradients(base, rows, settings.train.tokens_per_pass)
            else:
                mean_loss(base, rows)

        lora = settings.lora
        if heads:  # what is new in the model is trained with the adapter, and saved with it
            named = (lora.modules_to_save,) if isinstance(lora.modules_to_save, str) else lora.modules_to_save
            lora = lora.model_copy(update={"modules_to_save": tuple(dict.fromkeys([*named, *heads]))})
        originals = _originals(settings, base) if lora.init == "loftq" and settings.quantize else None
        inject(module, lora, settings.seed, calibrate, originals)
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
            "init 'loftq' makes up for what quantisation lost, and a GGUF file does not hold that",
            "use --quantize nf4 or int8, or another --lora.init",
        )
    plain = settings.model_copy(update={"quantize": None})
    module = _load(plain, base.tokenizer.classes).model.module

    def original(path: str) -> Tensor:
        layer: Any = module.get_submodule(path)
        weight: Tensor = layer.weight
        return weight.T if is_conv1d(layer) else weight

    return original


@dataclass
class _Run:
    """What is known of a run once its data and base are there; writes the files that do not depend on training."""

    settings: RunSettings
    base: Base
    data: Dataset
    lora: LoraConfig
    plan: Plan
    reasons: list[str]
    place: RunFolder

    def __post_init__(self) -> None:
        self.adapter = self.settings.folder / "adapter"
        data = self.settings.data
        self.facts: dict[str, Any] = {
            **facts_of(self.base, self.settings.base, self.settings.revision),
            "afina": __version__,
            "quantize": self.settings.quantize,
            "own_template": self.settings.template is not None,
            "data": data.asking(),
            "task": _TASKS[type(self.base.model)][0],
            "kind": "classification" if self.base.tokenizer.classes else data.kind,
            "max_new_tokens": TEXT_TOKENS if data.kind == "text" else math.ceil(1.25 * self.data.most_labelled) + 8,
            "reasons": self.reasons,
        }

    def announce(self, listener: Listener) -> None:
        data, base = self.data, self.base
        kept = f", {len(data.test)} kept apart until the end" if data.test != data.held_out else ""
        listener(Notice(base.engine, warning=isinstance(base.model, TransformersModel)))
        listener(
            Notice(
                f"base {base.facts.name}: {base.facts.parameters / 1e6:.0f} M parameters, {base.facts.layers} layers"
            )
        )
        listener(
            Notice(
                f"data: {len(data.train)} rows to train on ({data.train.tokens:,} tokens, {data.train.labelled:,} of them learned), "
                f"{len(data.held_out)} held out{kept}; the task looks like {self.facts['kind']}"
            )
        )
        for line in data.found:
            listener(Notice(line))
        for line in [*data.notices, *(f"not used: {line}" for line in data.rejected.lines())]:
            listener(Notice(line, warning=True))
        trainable = trainable_parameters(base.model.module)
        what = f"adapter: rank {self.lora.rank}" if self.settings.method == "lora" else f"method {self.settings.method}"
        listener(Notice(f"{what}, {trainable / 1e6:.2f} M trainable parameters"))
        for reason in self.reasons:
            listener(Notice(reason))

    def train(self, listener: Listener, resuming: bool) -> Done:
        """Makes the folder and trains into it, or goes on from its last checkpoint."""
        checkpoints = self.settings.folder / CHECKPOINTS
        mark = fingerprint(
            self.data.held_out + self.data.test,
            self.data.train.digest(),
            self.base.facts.sha256,
            self.base.tokenizer.template_hash(),
        )
        state = self._state(checkpoints, mark) if resuming else None
        if not resuming:
            self.place.begin()
        self._write_facts()
        forget_after(self.settings.folder / "metrics.jsonl", state.step if state else -1)
        metrics_file = MetricsFile(self.settings.folder / "metrics.jsonl")

        def both(event: Event) -> None:
            metrics_file(event)
            listener(event)

        data, settings = self.data, self.settings
        trainer = Trainer(
            base=self.base,
            train=data.train,
            held_out=data.held_out,
            settings=settings.train,
            plan=self.plan,
            seed=settings.seed,
            listener=both,
            save=self._save,
            checkpoints=checkpoints,
            state=state,
            mark=mark,
        )
        return trainer.run()

    def _state(self, checkpoints: Path, mark: str) -> State | None:
        found = read_latest(checkpoints)
        if found is None:
            return None
        state, written_for = found
        if written_for != mark:
            raise InputError(
                f"--resume {self.settings.folder}: the data or the base are not what the run began with",
                "put the files back as they were, or train anew",
            )
        return state

    def _write_facts(self) -> None:
        folder = self.settings.folder
        resolved = self.settings.model_dump(mode="json", exclude={"out", "overwrite"})
        resolved["base"] = self.facts["load"]["name"]
        if self.settings.data.path.exists():  # no data set of the hub
            resolved["data"]["path"] = str(self.settings.data.path.resolve())
        for name in ("eval_path", "test_path"):
            if path := getattr(self.settings.data, name):
                resolved["data"][name] = str(path.resolve())
        if self.settings.template:
            resolved["template"] = str(self.settings.template.resolve())
        resolved["lora"] = self.lora.model_dump(mode="json")
        resolved["precision"] = self.facts["precision"]
        resolved["threads"] = torch.get_num_threads()
        resolved["train"] |= self.plan.model_dump(
            include={"epochs", "learning_rate", "eval_steps", "checkpoint_activations"}
        )
        write_yaml(folder / "config.yaml", resolved)
        if self.data.rejected:
            write_jsonl(folder / "rejected.jsonl", [{"where": r.where, "reason": r.reason} for r in self.data.rejected])
        save_tokenizer(self.base, self.adapter)
        write_json(self.adapter / "afina.json", self.facts)
        write_atomic(self.adapter / "README.md", self._card())

    def _save(self) -> None:
        """Saves the adapter as it is now, and what its logits are, for the check after training."""
        facts = self.base.facts
        name = facts.hub_id or (facts.path if facts.kind in ("folder", "gguf") else facts.name)
        save_adapter(self.base.model.module, self.lora, self.adapter, name, _TASKS[type(self.base.model)][1])
        self.trained = probe(self.base, self.data.held_out)
        self.place.keep()

    def _card(self) -> str:
        facts, data = self.base.facts, self.settings.data
        licence = f"license: {facts.licence}\n" if facts.licence else ""
        hub = f"base_model: {facts.hub_id}\n" if facts.hub_id else ""
        templates = (
            "".join(f"- {name}: `{value}`\n" for name, value in self.facts["data"].items() if value is not None)
            or "- as the rows' own messages, or prompt and completion\n"
        )
        method, quantize = self.settings.method, self.settings.quantize
        quantised = f", on the base in few bits ({quantize})" if quantize else ""
        library, what = "library_name: peft\n", f"Rank {self.lora.rank}, alpha {self.lora.alpha:g}"
        if method != "lora":  # weights trained whole, which PEFT does not load without an adapter beside them
            library, what = "", "Its trained weights, for `afina generate` and `afina eval`"
        return (
            f"---\n{library}{hub}{licence}---\n\n# {facts.name} with {METHOD_NAMES[method]}\n\n"
            f"{what}, trained on {len(self.data.train)} rows of {data.path.name} "
            f"with Afina {__version__}{quantised}.\n\nIt expects the base's own chat template (kept here) and these texts:\n\n{templates}"
        )
