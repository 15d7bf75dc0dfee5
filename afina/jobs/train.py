"""From a file of examples to an adapter that was verified and evaluated."""

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from afina.base.load import Base, load_base
from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, Interrupted, SettingsError
from afina.core.events import Done, Event, Listener, MetricsFile, Notice, ignore
from afina.core.files import write_atomic, write_json, write_jsonl, write_yaml
from afina.data.load import Dataset, read_parts, render_parts, summary
from afina.jobs.runs import (
    RunFolder,
    adapter_folder,
    check_base,
    check_folder,
    read_facts,
    record,
    save_tokenizer,
)
from afina.jobs.settings import RunSettings
from afina.lora.adapter import load_adapter, read_config, save_adapter
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.measure.evaluation import Evaluation, evaluate_adapted
from afina.measure.metrics import infer_kind
from afina.measure.report import write_report
from afina.measure.verification import Verification, probe, verify
from afina.training.loop import Trainer
from afina.training.settings import Plan, plan
from afina.version import __version__


@dataclass(frozen=True)
class TrainResult:
    """Where everything lies, and how the adapted model does on the held-out rows."""

    folder: Path
    adapter: Path
    report: Path
    evaluation: Evaluation
    verification: Verification


def train(settings: RunSettings, listener: Listener = ignore) -> TrainResult:
    """Trains a LoRA adapter as `settings` say, checks what was saved, and evaluates it against the base.

    Raises `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    folder = settings.folder
    check_folder(folder, settings.overwrite)
    parts = read_parts(settings.data, settings.seed)  # what is wrong with a file is said before a model is loaded
    keep_freed_memory()
    base = _load(settings)
    data = render_parts(parts, settings.data, base)
    lora = _adapt(base, settings)
    steps, reasons = plan(settings.train, len(data.train), base.facts.hidden_size)
    reasons = [f"{base.dtype} for the base: {base.dtype_reason}".replace("torch.", ""), *reasons]
    run = _Run(settings, base, data, lora, steps, reasons, RunFolder(folder))
    run.announce(listener)
    try:
        done = run.train(listener)
    except BaseException:
        run.place.take_back()
        raise
    if done.reason == "interrupted":
        write_report(folder)
        raise Interrupted(
            f"stopped after step {done.steps} of {steps.steps}; the adapter of that step is in {run.adapter}"
        )
    trained, facts = run.trained, run.facts
    del base, run  # the trained model goes before a fresh one comes
    gc.collect()
    try:
        return _finish(settings, data, facts, trained, listener)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after training; the adapter in {folder / 'adapter'} is complete, but not evaluated\n"
            f"  → `afina eval {folder} DATA` scores it"
        ) from None


def _finish(
    settings: RunSettings, data: Dataset, facts: dict[str, Any], trained: Tensor, listener: Listener
) -> TrainResult:
    folder = settings.folder
    listener(Notice("reading the adapter back into a fresh base, and comparing"))
    fresh = _load(settings)
    load_adapter(fresh.model.module, folder / "adapter")
    verification = verify(fresh, data.held_out, trained)
    listener(
        Notice(
            f"verified: the logits of the adapter on disk differ by {verification.from_training:.2g} from training's, "
            f"and by {verification.from_base:.2g} from the base's"
        )
    )
    source = str(settings.data.eval_path or f"{settings.data.path} (held-out part)")
    evaluation = evaluate_adapted(
        fresh, data.held_out_examples, data.held_out, facts["kind"], facts["max_new_tokens"], listener, source
    )
    record(folder, evaluation)
    return TrainResult(folder, folder / "adapter", write_report(folder), evaluation, verification)


def _load(settings: RunSettings) -> Base:
    return load_base(
        settings.base,
        revision=settings.revision,
        precision=settings.precision,
        device=settings.device,
        cache_dir=settings.cache_dir,
    )


def _adapt(base: Base, settings: RunSettings) -> LoraConfig:
    """Puts a new adapter, or the one of `settings.adapter`, into the base; its configuration."""
    if settings.adapter is None:
        inject(base.model.module, settings.lora, settings.seed)
        return settings.lora
    folder = adapter_folder(settings.adapter)
    given, stored = settings.lora, read_config(folder)
    if given not in (LoraConfig(), stored):
        raise SettingsError(
            f"--adapter {settings.adapter} brings its own LoRA settings (rank {stored.rank}), and --lora.* gives others",
            "leave the --lora.* settings out",
        )
    try:
        check_base(read_facts(folder), base, folder)
        return load_adapter(base.model.module, folder)
    except AdapterError as error:
        raise AdapterError(f"--adapter {settings.adapter}: {error}") from error


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
        longest = max(row.labelled for row in [*self.data.train, *self.data.held_out])
        data = self.settings.data
        self.facts: dict[str, Any] = {
            "afina": __version__,
            "base": self.base.facts.card(),
            "load": {"name": self._base_name(), "revision": self.settings.revision},
            "precision": "bf16" if "bfloat16" in str(self.base.dtype) else "fp32",
            "tokenizer_sha256": self.base.tokenizer.hash(),
            "template_sha256": self.base.tokenizer.template_hash(),
            "data": {"prompt": data.prompt, "completion": data.completion, "system": data.system},
            "kind": infer_kind(self.data.completions),
            "max_new_tokens": math.ceil(1.25 * longest) + 8,
            "reasons": self.reasons,
        }

    def _base_name(self) -> str:
        local = self.base.facts.kind in ("folder", "gguf")
        return self.base.facts.path if local else self.settings.base

    def announce(self, listener: Listener) -> None:
        data, base = self.data, self.base
        listener(
            Notice(
                f"base {base.facts.name}: {base.facts.parameters / 1e6:.0f} M parameters, {base.facts.layers} layers"
            )
        )
        listener(
            Notice(
                f"data: {len(data.train)} rows to train on ({data.tokens:,} tokens, {data.labelled:,} of them learned), "
                f"{len(data.held_out)} held out; the task looks like {self.facts['kind']}"
            )
        )
        for line in [*data.notices, *(f"not used: {line}" for line in summary(data.rejected))]:
            listener(Notice(line, warning=True))
        trainable = sum(p.numel() for p in base.model.module.parameters() if p.requires_grad)
        listener(Notice(f"adapter: rank {self.lora.rank}, {trainable / 1e6:.2f} M trainable parameters"))
        for reason in self.reasons:
            listener(Notice(reason))

    def train(self, listener: Listener) -> Done:
        """Makes the folder and trains into it."""
        self.place.begin()
        self._write_facts()
        metrics_file = MetricsFile(self.settings.folder / "metrics.jsonl")

        def both(event: Event) -> None:
            metrics_file(event)
            listener(event)

        data, settings = self.data, self.settings
        trainer = Trainer(
            self.base, data.train, data.held_out, settings.train, self.plan, settings.seed, both, self._save
        )
        return trainer.run()

    def _write_facts(self) -> None:
        folder = self.settings.folder
        resolved = self.settings.model_dump(mode="json", exclude={"out", "overwrite"})
        resolved["base"] = self._base_name()
        resolved["data"]["path"] = str(self.settings.data.path.resolve())
        if self.settings.data.eval_path:
            resolved["data"]["eval_path"] = str(self.settings.data.eval_path.resolve())
        resolved["lora"] = self.lora.model_dump(mode="json")
        resolved["train"] |= self.plan.model_dump(include={"epochs", "learning_rate", "eval_steps"})
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
        save_adapter(self.base.model.module, self.lora, self.adapter, name, "CAUSAL_LM")
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
        return (
            f"---\nlibrary_name: peft\n{hub}{licence}---\n\n# LoRA adapter of {facts.name}\n\n"
            f"Rank {self.lora.rank}, alpha {self.lora.alpha:g}, trained on {len(self.data.train)} rows of {data.path.name} "
            f"with Afina {__version__}.\n\nIt expects the base's own chat template (kept here) and these texts:\n\n{templates}"
        )
