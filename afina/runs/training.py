"""One training, from settings to a run folder: trained, verified by reading back, evaluated."""

import gc
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.config import build, merge, read_yaml
from afina.core.device import memory_gb
from afina.core.errors import InputError, Interrupted
from afina.core.events import Done, Event, Listener, MetricsFile, Notice, forget_after, ignore, minutes
from afina.core.files import write_json, write_jsonl, write_yaml
from afina.data.load import Dataset
from afina.data.template import Row
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.machines import this_machine
from afina.forecast.memory import GB
from afina.forecast.remedies import refuse_what_cannot_fit
from afina.forecast.workload import workload_of
from afina.lora.config import LoraConfig
from afina.lora.injection import trainable_parameters
from afina.lora.peft_files import load_adapter, save_adapter
from afina.measure.evaluation import Evaluation
from afina.measure.evaluator import evaluate_adapted
from afina.measure.outputs import EvaluationSet
from afina.measure.pages.card import write_card
from afina.measure.pages.report import write_report
from afina.measure.verification import Verification, reference_logits, verify
from afina.models.load import Base, import_libraries
from afina.runs.assemble import Assembled, adapt, assemble, load, planned
from afina.runs.facts import facts_of, save_tokenizer
from afina.runs.folder import RunFolder, check_folder, record
from afina.runs.tracking import Trackers
from afina.settings import RunSettings
from afina.training.checkpoint import State, fingerprint, read_latest
from afina.training.loop import Trainer
from afina.training.settings import Plan
from afina.version import __version__

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """Where everything lies, and how the adapted model does on the held-out rows."""

    folder: Path
    adapter: Path
    report: Path
    prompt: str | None
    evaluation: Evaluation
    verification: Verification


def train_run(settings: RunSettings, listener: Listener = ignore) -> TrainResult:
    """Trains a LoRA adapter as `settings` say, checks what was saved, and evaluates it against the base.

    Raises `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    check_folder(settings.folder, settings.overwrite)
    return _train(RunFolder(settings.folder), settings, listener, resuming=False)


def resume_run(folder: Path | str, listener: Listener = ignore) -> TrainResult:
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
    place.commit()
    return _train(place, settings, listener, resuming=True)


def _train(place: RunFolder, settings: RunSettings, listener: Listener, *, resuming: bool) -> TrainResult:
    folder = settings.folder
    trackers = Trackers(settings.track, listener)
    import_libraries()
    start = memory_gb()
    whole = assemble(settings, listener)
    settings, base, data = whole.settings, whole.base, whole.data
    lora = adapt(base, settings, data)
    steps, reasons = planned(settings, base, data)
    reasons = [f"{base.dtype} for the base: {base.dtype_reason}".replace("torch.", ""), *reasons]
    asked = whole.asked()
    run = _Run(settings, base, data, asked, lora, steps, reasons, place)
    run.announce(listener)
    foreseen = None if resuming else _forecast(whole, listener)
    with place.locked(), closing(trackers):
        try:
            done = run.train(listener, resuming, start, trackers)
        except BaseException:
            run.place.roll_back()
            raise
        if done.reason == "interrupted":
            write_report(folder)
            raise Interrupted(
                f"stopped after step {done.steps} of {steps.steps}; the adapter of that step is in {run.adapter}",
                f"`afina train --resume {folder}` resumes it",
            )
        if foreseen:
            _compare(foreseen, done, folder, listener)
        trained, facts = run.trained, run.facts
        del base, whole, run  # the trained model goes before a fresh one comes
        gc.collect()
        try:
            result = _finish(settings, data.held_out, asked, facts, trained, listener)
            trackers.result(result.evaluation.json())
            return result
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted after training; the adapter in {folder / 'adapter'} is complete, but not evaluated",
                f"`afina train --resume {folder}` evaluates it",
            ) from None


_MEASURED_FROM = (
    60.0  # seconds that a training takes by a rough guess, from which on it is worth measuring this machine
)


def _forecast(whole: Assembled, listener: Listener) -> Forecast | None:
    """What the training will need. Raises `SettingsError` where that is more memory than is free."""
    if whole.skeleton is None:
        return None
    settings, workload = whole.settings, workload_of(whole.data, whole.max_new_tokens)
    place = this_machine(whole.cache, settings.device, settings.precision, measure=False)
    seen = refuse_what_cannot_fit(whole.skeleton, settings, workload, place, whole.cache)
    if seen.seconds > _MEASURED_FROM and not place.measured:
        place = this_machine(whole.cache, settings.device, settings.precision, listener=listener)
        seen = forecast_training(whole.skeleton, settings, workload, place)
    listener(
        Notice(
            f"forecast: {seen.memory.total / GB:.1f} GB of memory ({seen.available / GB:.1f} GB are free), training "
            f"{minutes(seen.seconds)}, then answers {minutes(seen.evaluation)}"
        )
    )
    return seen


def _compare(foreseen: Forecast, done: Done, folder: Path, listener: Listener) -> None:
    """Says, and keeps, how the forecast came out."""
    memory, seconds = foreseen.memory.training / GB, foreseen.seconds * done.steps / foreseen.plan.steps
    measured = {"memory_gb": done.peak_memory_gb, "seconds": done.seconds, "steps": done.steps}
    write_json(folder / "forecast.json", {"forecast": foreseen.json(), "measured": measured})
    listener(
        Notice(
            f"forecast and measured: memory {memory:.2f} and {done.peak_memory_gb:.2f} GB "
            f"({memory / done.peak_memory_gb - 1:+.0%}), training {minutes(seconds)} and {minutes(done.seconds)} "
            f"({seconds / max(done.seconds, 1e-9) - 1:+.0%})"
        )
    )


def _finish(
    settings: RunSettings,
    held_out: list[Row],
    asked: EvaluationSet,
    facts: dict[str, Any],
    trained: Tensor,
    listener: Listener,
) -> TrainResult:
    folder = settings.folder
    listener(Notice("reading the adapter back into a fresh base, and comparing"))
    fresh = load(settings, facts["classes"])
    load_adapter(fresh.model.module, folder / "adapter")
    verification = verify(fresh, held_out, trained)
    listener(
        Notice(
            f"verified: the logits of the adapter on disk differ by {verification.from_training:.2g} from training's, "
            f"and by {verification.from_base:.2g} from the base's"
        )
    )
    evaluation = evaluate_adapted(fresh, asked, listener, cache_dir=settings.cache_dir)
    record(folder, evaluation)
    write_card(folder)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return TrainResult(folder, folder / "adapter", write_report(folder), settings.data.prompt, evaluation, verification)


@dataclass
class _Run:
    """What is known of a run once its data and base are there; writes the files that do not depend on training."""

    settings: RunSettings
    base: Base
    data: Dataset
    asked: EvaluationSet
    lora: LoraConfig
    plan: Plan
    reasons: list[str]
    place: RunFolder

    def __post_init__(self) -> None:
        self.adapter = self.settings.folder / "adapter"
        data = self.settings.data
        self.facts: dict[str, Any] = {
            **facts_of(self.base, self.settings.base),
            "afina": __version__,
            "quantize": self.settings.quantize,
            "own_template": self.settings.template is not None,
            "data": data.asking(),
            "task": self.base.task.name,
            "kind": self.asked.kind,
            "max_new_tokens": self.asked.max_new_tokens,
            "rows": {"train": len(self.data.train), "held_out": len(self.data.held_out), "test": len(self.data.test)},
            "trainable_parameters": trainable_parameters(self.base.model.module),
            "reasons": self.reasons,
        }

    def announce(self, listener: Listener) -> None:
        data, base = self.data, self.base
        kept = f", {len(data.test)} kept apart until the end" if data.test != data.held_out else ""
        listener(Notice(base.engine, warning=base.fell_back))
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
        what = f"adapter: rank {self.lora.rank}" if self.settings.method == "lora" else f"method {self.settings.method}"
        listener(Notice(f"{what}, {self.facts['trainable_parameters'] / 1e6:.2f} M trainable parameters"))
        for reason in self.reasons:
            listener(Notice(reason))

    def train(self, listener: Listener, resuming: bool, start_memory_gb: float, trackers: Trackers) -> Done:
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
            self.place.start()
        self._write_facts()
        forget_after(self.settings.folder / "metrics.jsonl", state.step if state else -1)
        metrics_file = MetricsFile(self.settings.folder / "metrics.jsonl")

        trackers.open(self.settings.folder, read_yaml(self.settings.folder / "config.yaml"))

        def both(event: Event) -> None:
            metrics_file(event)
            trackers(event)
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
            start_memory_gb=start_memory_gb,
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
            write_jsonl(
                folder / "rejected.jsonl", [{"where": r.location, "reason": r.reason} for r in self.data.rejected]
            )
        save_tokenizer(self.base, self.adapter)
        write_json(self.adapter / "afina.json", self.facts)
        write_card(folder)

    def _save(self) -> None:
        """Saves the adapter as it is now, and what its logits are, for the check after training."""
        facts = self.base.facts
        name = facts.hub_id or (facts.path if facts.kind in ("folder", "gguf") else facts.name)
        save_adapter(self.base.model.module, self.lora, self.adapter, name, self.base.task.task_type)
        self.trained = reference_logits(self.base, self.data.held_out)
        self.place.commit()
