"""One training, from settings to a run folder: trained, verified by loading what was saved, evaluated."""

import gc
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from afina.core.config import build, changed, merge, read_yaml
from afina.core.device import memory_gb, pick_device
from afina.core.errors import AdapterError, InputError, Interrupted, counted, writing
from afina.core.events import (
    Done,
    Event,
    Listener,
    MetricsFile,
    Notice,
    Progress,
    Step,
    forget_after,
    ignore,
    minutes,
)
from afina.core.files import leads_out, write_json, write_jsonl, write_yaml
from afina.core.process.temporary import arriving_in, remove_at_once
from afina.core.text import command_line
from afina.core.world import SINGLE, World
from afina.data.rows import placed
from afina.data.template import Row
from afina.forecast.estimate import Forecast, forecast_training, shared_in_words
from afina.forecast.machines import this_machine
from afina.forecast.memory import GB
from afina.forecast.remedies import refuse_what_cannot_fit
from afina.forecast.workload import workload_of
from afina.lora.injection import trainable_parameters
from afina.lora.peft_files import load_adapter, save_adapter
from afina.measure.evaluation import Evaluation
from afina.measure.evaluator import evaluate_adapted
from afina.measure.outputs import EvaluationSet
from afina.measure.pages.card import write_card
from afina.measure.pages.report import write_report
from afina.measure.verification import Verification, reference_logits, verify
from afina.models.load import import_libraries
from afina.runs.assemble import Assembled, assemble, load
from afina.runs.facts import facts_of, read_facts, save_tokenizer, write_facts
from afina.runs.folder import CHECKPOINTS, RUN_FILES, RunFolder, is_complete, record
from afina.runs.samples import answers_of
from afina.runs.tracking import Trackers
from afina.settings import Resolved, RunSettings
from afina.training.checkpoint import State, fingerprint, read_latest
from afina.training.loop import Trainer
from afina.version import __version__


@dataclass(frozen=True)
class TrainedRun:
    """Where everything was written, the settings with nothing left open, and how the adapted model does on the test
    split (or else the held-out rows)."""

    folder: Path
    adapter: Path
    report: Path
    settings: RunSettings
    evaluation: Evaluation
    verification: Verification


def train_run(settings: RunSettings, listener: Listener = ignore) -> TrainedRun:
    """Trains a LoRA adapter as `settings` say, checks what was saved, and evaluates it against the base.

    Raises `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    run_folder = RunFolder(settings.folder)
    with run_folder.locked():
        run_folder.settle()
        run_folder.check(settings.overwrite)
        return _train(run_folder, settings, listener, resuming=False)


def resume_run(folder: Path | str, listener: Listener = ignore) -> TrainedRun:
    """Resumes the run in `folder`, which was killed or interrupted, with the settings it recorded.

    On the same machine it ends with the adapter that it would have had, bit for bit. A run that was killed before its
    first checkpoint starts again. Raises as `train_run` does, also where the run is complete or its data have
    changed.
    """
    folder = Path(folder)
    nothing = InputError(f"--resume {folder} contains no run", "give the folder that `afina train` wrote (its --out)")
    if not folder.is_dir():
        raise nothing
    run_folder, config = RunFolder(folder), folder / "config.yaml"
    with run_folder.locked():
        run_folder.settle(resuming=True)
        if not config.is_file():
            raise nothing
        if is_complete(folder):
            raise InputError(
                f"--resume {folder}: this run is complete",
                "train further with `afina train DATA --adapter RUN --out OTHER`",
            )
        for name in RUN_FILES:
            if elsewhere := leads_out(folder / name, folder):
                raise InputError(
                    f"--resume {folder}: {name} is a link to {elsewhere}, outside the run, where it would be written",
                    f"put what it leads to into {folder}",
                )
        settings = build(RunSettings, merge(read_yaml(config), {"out": folder}))
        return _train(run_folder, settings, listener, resuming=True)


def _train(run_folder: RunFolder, settings: RunSettings, listener: Listener, *, resuming: bool) -> TrainedRun:
    trackers = Trackers(settings.track, listener)
    import_libraries()
    start = memory_gb(pick_device(settings.device))
    assembled = assemble(settings, listener)
    run = _Run(assembled, assembled.adapt(settings, listener), run_folder, resuming)
    run.announce(listener)
    forecast = None if resuming else _forecast(assembled, run.resolved, listener)
    if forecast and (shared := shared_in_words(forecast.computed)):
        listener(Notice(shared))
    with closing(trackers):
        try:
            done = run.train(_with_answers(listener, forecast), start, trackers)
        except BaseException:
            if resuming:
                run_folder.settle()  # what can be resumed again stays
            else:
                run_folder.roll_back()
            raise
        folder = settings.folder
        if done.reason == "interrupted":
            write_report(folder)
            raise Interrupted(
                f"stopped after step {done.steps} of {run.resolved.plan.steps}; "
                f"the adapter of that step is in {run.adapter}",
                f"`{command_line('train', '--resume', folder)}` resumes it",
            )
        if forecast:
            _compare(forecast, done, folder, listener)
        trained = _Trained(run.resolved, run.data.held_out, run.asked, run.facts, run.logits)
        del assembled, run  # the trained model goes before a fresh one comes
        gc.collect()
        try:
            result = _finish(trained, listener)
            trackers.result(result.evaluation.json())
            return result
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted after training; the adapter in {folder / 'adapter'} is complete, but not evaluated",
                f"`{command_line('train', '--resume', folder)}` evaluates it",
            ) from None


# Seconds that a training takes by a rough estimate, from which on measuring this machine's speed is worth its time.
_WORTH_MEASURING = 60.0


def _forecast(assembled: Assembled, resolved: Resolved, listener: Listener) -> Forecast | None:
    """What the training will need. Raises `SettingsError` where that is more memory than is free."""
    if assembled.skeleton is None:
        return None
    settings = changed(assembled.settings, {"quantize": resolved.base.quantize})
    workload = workload_of(assembled.data, assembled.max_new_tokens)
    machine = this_machine(assembled.cache, settings.device, settings.precision, measure=False)
    forecast = refuse_what_cannot_fit(assembled.skeleton, settings, workload, machine, assembled.cache)
    caution = f" ({machine.caution})" if machine.caution else ""
    if forecast.seconds > _WORTH_MEASURING:
        machine, caution = this_machine(assembled.cache, settings.device, settings.precision, listener=listener), ""
        forecast = forecast_training(assembled.skeleton, settings, workload, machine)
    listener(
        Notice(
            f"forecast: {forecast.memory.total / GB:.1f} GB of memory ({forecast.available / GB:.1f} GB are free), "
            f"training {minutes(forecast.seconds)}, then answers {minutes(forecast.evaluation)}{caution}"
        )
    )
    return forecast


def _with_answers(listener: Listener, forecast: Forecast | None) -> Listener:
    """Tells of the time that is left with that of the answers after the training, where it was forecast."""

    def told(event: Event) -> None:
        if forecast and isinstance(event, Step):
            event = replace(event, seconds_left=event.seconds_left + forecast.evaluation)
        listener(event)

    return told


def _compare(forecast: Forecast, done: Done, folder: Path, listener: Listener) -> None:
    """Reports the forecast beside what was measured, and records both."""
    memory, seconds = forecast.memory.training / GB, forecast.seconds * done.steps / forecast.plan.steps
    measured = {"memory_gb": done.peak_memory_gb, "seconds": done.seconds, "steps": done.steps}
    write_json(folder / "forecast.json", {"forecast": forecast.json(), "measured": measured})
    listener(
        Notice(
            f"forecast and measured: memory {memory:.2f} and {done.peak_memory_gb:.2f} GB "
            f"({memory / done.peak_memory_gb - 1:+.0%}), training {minutes(seconds)} and {minutes(done.seconds)} "
            f"({seconds / max(done.seconds, 1e-9) - 1:+.0%})"
        )
    )


@dataclass(frozen=True)
class _Trained:
    """What is left of a training when its model is gone: `logits` are the adapted model's, to compare with."""

    resolved: Resolved
    held_out: Sequence[Row]
    asked: EvaluationSet
    facts: dict[str, Any]
    logits: Tensor


def _finish(trained: _Trained, listener: Listener) -> TrainedRun:
    """Loads what was saved into a fresh base, verifies and evaluates it, and writes the report."""
    settings = trained.resolved.settings
    folder = settings.folder
    listener(Progress("loading the saved adapter into a fresh base, and comparing", 0, 0))
    fresh = load(settings, trained.facts["classes"])
    load_adapter(fresh.model.module, folder / "adapter")
    fresh.model.sharing &= settings.train.share  # as in training
    verification = verify(fresh, trained.held_out, trained.logits)
    listener(
        Notice(
            f"verified: the logits of the saved adapter differ by {verification.from_training:.2g} from those in "
            f"training, and by {verification.from_base:.2g} from the base's"
        )
    )
    evaluation = evaluate_adapted(fresh, trained.asked, listener, cache_dir=settings.cache_dir)
    record(folder, evaluation)
    remove_at_once(folder / CHECKPOINTS)
    adapter, report = folder / "adapter", folder / "report.html"
    return TrainedRun(folder, adapter, report, settings, evaluation, verification)


@dataclass
class _Run:
    """What is known of a run once its data and base are there; writes the files that do not depend on training."""

    assembled: Assembled
    resolved: Resolved
    run_folder: RunFolder
    resuming: bool
    world: World = SINGLE
    logits: Tensor = field(init=False)  # of the adapter as it was last saved, at a few labelled positions

    def __post_init__(self) -> None:
        self.base, self.data, self.asked = self.assembled.base, self.assembled.data, self.assembled.asked()
        self.folder = self.run_folder.folder
        self.adapter = self.folder / "adapter"
        settings = self.resolved.asked
        self.facts: dict[str, Any] = {
            **facts_of(self.base, settings.base),
            "afina": __version__,
            "quantize": self.resolved.base.quantize,
            "own_template": settings.template is not None,
            "data": self.resolved.data.asking(),
            "kind": self.asked.kind,
            "max_new_tokens": self.asked.max_new_tokens,
            "rows": {"train": len(self.data.train), "held_out": len(self.data.held_out), "test": len(self.data.test)},
            "trainable_parameters": trainable_parameters(self.base.model.module),
            "reasons": self._reasons(),
        }

    def _reasons(self) -> list[str]:
        """Why each open setting was chosen as it is. The settings that are resumed with are none of them open."""
        with suppress(AdapterError):  # damaged: it is written again
            if self.resuming and (found := read_facts(self.adapter)):
                return list(found["reasons"])
        return list(self.resolved.reasons)

    def announce(self, listener: Listener) -> None:
        """Tells what is trained, on what, and why each open setting was chosen as it is."""
        data, base, resolved = self.data, self.base, self.resolved
        test = f", {len(data.test)} in the test split" if data.test else ""
        listener(Notice(base.engine, warning=base.fell_back))
        listener(
            Notice(
                f"base {base.facts.name}: {base.facts.parameters / 1e6:.0f} M parameters, "
                f"{counted(base.facts.layers, 'layer')}"
            )
        )
        listener(
            Notice(
                f"data: {counted(len(data.train), 'row')} to train on "
                f"({counted(data.train.tokens, 'token')}, {data.train.labelled:,} of "
                f"them with a loss), {len(data.held_out)} held out{test}; the task looks like {self.facts['kind']}"
            )
        )
        for line in data.notes:
            listener(Notice(line))
        for line in [*data.notices, *(f"not used: {line}" for line in data.rejected.lines())]:
            listener(Notice(line, warning=True))
        method = resolved.asked.method
        what = f"adapter: rank {resolved.adapter.rank}" if method == "lora" else f"method {method}"
        listener(Notice(f"{what}, {self.facts['trainable_parameters'] / 1e6:.2f} M trainable parameters"))
        for reason in self.facts["reasons"]:
            listener(Notice(reason))
        if resolved.asked.train.share and not base.model.sharing:
            listener(Notice("what rows begin with is computed for each of them: this base shares nothing"))
        elif resolved.asked.train.share and resolved.adapter.dropout:
            listener(Notice("what rows begin with is computed for each of them: dropout changes it in each"))

    def train(self, listener: Listener, start_memory_gb: float, trackers: Trackers) -> Done:
        """Creates the folder and trains into it, or resumes from its last checkpoint."""
        checkpoints = self.folder / CHECKPOINTS
        mark = fingerprint(
            self.data.held_out + self.data.evaluated,
            self.data.train.digest(),
            self.base.facts.sha256,
            self.base.tokenizer.template_hash(),
        )
        state = self._state(checkpoints, mark) if self.resuming else None
        metrics_file = MetricsFile(self.folder / "metrics.jsonl")
        if self.world.main:  # the folder is the main process's; the others read checkpoints from it
            if not self.resuming:
                self.run_folder.start()
                with writing(self.folder), arriving_in(self.folder) as place:
                    self._write_facts(place)
            else:
                config = self.folder / "config.yaml"
                begun = config.stat().st_mtime
                self._write_facts(self.folder)
                os.utime(config, (begun, begun))  # it says when the run began
            first = state.step + 1 if state else 0
            again = forget_after(metrics_file.path, first - 1)
            trackers.open(self.folder, read_yaml(self.folder / "config.yaml"), first, again)

        def tell_all(event: Event) -> None:
            metrics_file(event)
            trackers(event)
            listener(event)

        settings = self.resolved.asked
        trainer = Trainer(
            base=self.base,
            train=self.data.train,
            held_out=self.data.held_out,
            settings=settings.train,
            plan=self.resolved.plan,
            seed=settings.seed,
            listener=tell_all,
            save=self._save,
            checkpoints=checkpoints,
            state=state,
            mark=mark,
            start_memory_gb=start_memory_gb,
            answers=answers_of(self.base, self.asked, settings.train.samples),
            world=self.world,
        )
        return trainer.run()

    def _state(self, checkpoints: Path, mark: str) -> State | None:
        """The state of the last checkpoint, if there is one. Raises `InputError` where it is of other data or another
        base.
        """
        found = read_latest(checkpoints)
        if found is None:
            return None
        state, written_for = found
        if written_for != mark:
            raise InputError(
                f"--resume {self.folder}: the data or the base are not what the run began with",
                "put the files back as they were, or start a new run",
            )
        return state

    def _write_facts(self, folder: Path) -> None:
        """What is known before training, into the run's folder or one whose files will be there."""
        write_yaml(folder / "config.yaml", self.resolved.config())
        if self.data.rejected:
            path = self.resolved.asked.data.path
            rows = ({"where": placed(r.location, path), "reason": r.reason} for r in self.data.rejected)
            write_jsonl(folder / "rejected.jsonl", rows)
        save_tokenizer(self.base, folder / "adapter")
        write_facts(folder / "adapter", self.facts, self.adapter)
        write_card(folder)

    def _save(self) -> None:
        """Saves the adapter as it is now, and keeps some of its logits for the verification after training."""
        name = self.base.facts.public_name
        save_adapter(self.base.model.module, self.resolved.adapter, self.adapter, name, self.base.task.task_type)
        self.logits = reference_logits(self.base, self.data.held_out)
        self.run_folder.commit()
