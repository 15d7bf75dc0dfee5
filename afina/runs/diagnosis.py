"""What went wrong in a run that failed or turned out poorly, judged by its files: the usual problems of fine-tuning."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from afina.core.config import build
from afina.core.device import memory_limit
from afina.core.errors import SettingsError, counted
from afina.core.events import Finding
from afina.core.layers import not_finite
from afina.core.task import TASKS
from afina.core.text import command_line
from afina.lora.peft_files import WEIGHTS
from afina.runs.files import RunFiles, read_run
from afina.settings import RunSettings
from afina.training.settings import MOST_BATCH

_NEARLY_ALL = 0.85  # of the memory
_RISEN, _JUMP = 0.1, 1.0  # nats per token
_UNMOVED = 0.02  # of the first loss
_MANY_REJECTED = 0.1
_FEW_ROWS = 50


def examine(folder: Path) -> list[Finding]:
    """What is wrong with the run in `folder`, the gravest first. Raises `InputError` where it holds none."""
    run = read_run(folder)
    findings = run.damaged + [each for check in _CHECKS for each in check(run)]
    return sorted(findings, key=lambda each: ("wrong", "warning", "ok").index(each.state))


def _settings(run: RunFiles) -> Iterator[Finding]:
    """Settings with which nothing can be trained."""
    try:
        if run.config:
            build(RunSettings, run.config.content | {"out": run.folder})
    except SettingsError as error:
        found = f"a run can be neither resumed nor reproduced with it: {'; '.join(error.problems)}"
        yield Finding("config.yaml", "wrong", found, "restore it from a copy, or retrain")


def _end(run: RunFiles) -> Iterator[Finding]:
    """Runs that were cut off, in training or after it."""
    resume = command_line("train", "--resume", run.folder)
    if run.evaluated:
        if run.done is None and not any(each.what == "metrics.jsonl" for each in run.damaged):
            found = "it does not say how training ended, though the run was evaluated: the file is cut off or missing"
            yield Finding("metrics.jsonl", "wrong", found, "restore it from a copy; the adapter does not need it")
        return
    if run.done is None:
        most = max((step.memory_gb if step.host_gb is None else step.host_gb for step in run.steps), default=0.0)
        limit = memory_limit() / 1e9
        last = f"after step {run.steps[-1].step} of {run.steps[-1].total}" if run.steps else "before its first step"
        if most > _NEARLY_ALL * limit:
            smaller = "--train.tokens_per_pass 512, --train.checkpoint_activations true or --quantize nf4"
            found = f"it was cut off {last} with {most:.1f} of {limit:.1f} GB in use: most likely out of memory"
            yield Finding("end", "wrong", found, f"start again with {smaller}")
        else:
            yield Finding("end", "wrong", f"it was cut off {last}: killed, or the machine went down", resume)
    elif run.done.reason == "interrupted":
        yield Finding("end", "wrong", f"it was interrupted after step {run.done.steps}", resume)
    else:
        found = "training finished, the evaluation did not: killed, or out of memory during it"
        yield Finding("end", "wrong", found, f"{resume} evaluates it")


def _numbers(run: RunFiles) -> Iterator[Finding]:
    """Losses that are not finite, a loss of zero, no gradient."""
    broken = next((s for s in run.steps if not (math.isfinite(s.loss) and math.isfinite(s.grad_norm))), None)
    if broken:
        found = f"the loss became {broken.loss} at step {broken.step} (learning rate {broken.learning_rate:.2g})"
        yield Finding("loss", "wrong", found, "lower --train.learning_rate to a third, or use --precision fp32")
    if run.steps and run.steps[0].loss == 0:
        found = "it was zero from the first step: no token carried a label"
        yield Finding("loss", "wrong", found, "`afina data show FILE --row 1` shows which tokens have labels")
    if run.steps and all(step.grad_norm == 0 for step in run.steps):
        found = "no gradient reached the adapter, so nothing was trained"
        yield Finding("gradients", "wrong", found, "choose other layers with --lora.target_modules")


def _weights(run: RunFiles) -> Iterator[Finding]:
    """An adapter that is missing, damaged, not finite or changes nothing."""
    if run.weights is None and run.evaluated:
        found = f"{WEIGHTS} is missing, though the run was evaluated: it was moved or deleted"
        again = (
            f": {command_line('train', '--config', run.folder / 'config.yaml', '--out', 'DIR')}" if run.config else ""
        )
        yield Finding("adapter", "wrong", found, f"restore it from a copy, or retrain{again}")
    elif run.weights is None and run.steps:
        found = "there is none: the run ended before the first was saved"
        yield Finding("adapter", "wrong", found, command_line("train", "--resume", run.folder))
    if not run.weights:
        return
    for dtype in {value.dtype for value in run.weights.values()}:
        name, again = str(dtype).removeprefix("torch."), "restore it in float32, float16 or bfloat16, as it was trained"
        if not dtype.is_floating_point:
            found = f"its numbers are whole ({name}), which mean nothing without the program that quantised them"
            yield Finding("adapter", "wrong", found, again)
        elif dtype.itemsize == 1:
            yield Finding(
                "adapter", "warning", f"its numbers have few bits ({name}): it answers worse than it could", again
            )
    if bad := not_finite(run.weights):
        found = f"{counted(len(bad), 'tensor is')} not finite ({bad[0]})"
        yield Finding("adapter", "wrong", found, "retrain with a lower learning rate")
    pairs = [value for name, value in run.weights.items() if name.endswith("lora_B.weight")]
    if pairs and not any(value.any() for value in pairs):
        found = "every B is zero: it changes nothing"
        yield Finding("adapter", "wrong", found, "train it longer, or at a higher learning rate")
    heads = run.peft.modules_to_save or []
    absent = [head for head in heads if not any(f".{head}." in name for name in run.weights)]
    task = TASKS.get(str(run.facts.task)) if run.facts else None
    if task and task.needs_classes and absent:
        found = f"the classifier's head ({', '.join(absent)}) is not in it: it would answer at random"
        yield Finding("adapter", "wrong", found, f"retrain; copy {WEIGHTS} completely")


def _template(run: RunFiles) -> Iterator[Finding]:
    """A chat template that is not the one of training."""
    file = run.folder / "adapter" / "chat_template.jinja"
    if run.facts is None or not file.exists():
        return
    if hashlib.sha256(file.read_text(encoding="utf-8").encode()).hexdigest() != run.facts.template_sha256:
        found = "adapter/chat_template.jinja is not the one it was trained with"
        yield Finding("template", "wrong", found, "restore it; prompts in another format get poor answers")


def _learning(run: RunFiles) -> Iterator[Finding]:
    """Learning rates that are too high or too low."""
    losses = [loss for loss in run.losses if math.isfinite(loss)]
    third = len(losses) // 3
    if third < 3:
        return
    first, last = _mean(losses[:third]), _mean(losses[-third:])
    if last > first + _RISEN:
        found = f"the loss rose from {first:.2f} to {last:.2f}"
        yield Finding("learning rate", "wrong", found, "lower --train.learning_rate to a third")
    elif first - min(losses) < _UNMOVED * first:
        found = f"the loss hardly moved ({first:.2f} to {last:.2f})"
        remedy = "raise --train.learning_rate threefold, or train longer; `afina tune` searches for it"
        yield Finding("learning rate", "warning", found, remedy)


def _held_out(run: RunFiles) -> Iterator[Finding]:
    """Nothing learned, and overfitting."""
    seen = [each for each in run.held_out if each.step]
    untrained = next((each for each in run.held_out if not each.step), None)
    best = min(seen, key=lambda each: each.cost, default=None)
    if best is None:
        return
    if untrained and best.cost >= untrained.cost:
        found = (
            f"the held-out {best.measure} was {untrained.value:.3f} before training and {best.value:.3f} at best after"
        )
        yield Finding("learning", "wrong", found, "use more rows, more --epochs, or a learning rate from `afina tune`")
    if seen[-1].cost > best.cost + _RISEN:
        was, became = ("lowest", "rose") if best.lower_is_better else ("highest", "fell")
        found = (
            f"the held-out {best.measure} was {was} after step {best.step} ({best.value:.2f}) and {became} to "
            f"{seen[-1].value:.2f}; the adapter is the one of step {best.step}"
        )
        yield Finding("overfitting", "warning", found, "use fewer --epochs, or more rows")


def _steps(run: RunFiles) -> Iterator[Finding]:
    """Steps that are missing or double, jumps of the loss, and large batches."""
    steps = [step.step for step in run.steps]
    if steps != list(range(1, len(steps) + 1)):
        found = "metrics.jsonl does not count its steps one by one: two runs wrote to it, or a part is lost"
        yield Finding("steps", "wrong", found, "retrain with --overwrite")
    for before, after in pairwise(run.steps):
        if after.loss > before.loss + _JUMP and after.loss > 2 * before.loss and before.step > 10:
            found = f"the loss jumped at step {after.step}, from {before.loss:.2f} to {after.loss:.2f}"
            yield Finding(
                "steps", "warning", found, "look at the rows of that step; a lower learning rate is more stable"
            )
            break
    size = (run.config.train.batch_size if run.config else None) or 0
    if size > MOST_BATCH:
        found = f"{size} rows per step: large batches hurt LoRA more than full fine-tuning"
        yield Finding("batch", "warning", found, f"use at most {MOST_BATCH}")


def _data(run: RunFiles) -> Iterator[Finding]:
    """Rows that were left out or truncated."""
    rows = run.facts.rows if run.facts else {}
    data = run.config.data if run.config else None
    total = sum(rows.values()) + len(run.rejected)
    if run.rejected and len(run.rejected) > _MANY_REJECTED * total:
        reason, count = Counter(each.reason for each in run.rejected).most_common(1)[0]
        found = f"{counted(len(run.rejected), 'row was')} not used, of {total:,}; {count:,} of them: {reason}"
        yield Finding("data", "wrong", found, "rejected.jsonl names each; `afina data check` says what to do")
    if data and data.too_long == "cut":
        yield Finding("data", "ok", "long prompts were truncated to the base's context (--data.too_long cut)")
    if 0 < rows.get("train", 0) < _FEW_ROWS:
        found = f"{counted(rows['train'], 'row is')} few to train on"
        yield Finding("data", "warning", found, "a hundred or more teach a format, a thousand a task")


def _size(run: RunFiles) -> Iterator[Finding]:
    """Embeddings saved in full, and merging into a base that was quantised in training."""
    saved = run.peft.modules_to_save or []
    if run.config is None:
        return
    if run.config.method == "lora" and any("embed" in name or name == "lm_head" for name in saved):
        found = f"{', '.join(saved)} are saved in full, which makes the adapter large"
        yield Finding(
            "adapter's size", "warning", found, "--lora.trainable_tokens trains only the embeddings of single tokens"
        )
    if run.config.quantize:
        found = (
            f"the base was quantised to {run.config.quantize} in training: `afina adapters merge` uses it in full "
            "precision and reports how far the logits move"
        )
        yield Finding("merging", "ok", found)


def _result(run: RunFiles) -> Iterator[Finding]:
    """What the evaluation found."""
    if run.evaluation is None:
        return
    for line in run.evaluation.findings:
        yield Finding("evaluation", "wrong", line)
    name = run.evaluation.main_metric
    verdict = run.evaluation.difference[name].verdict
    if verdict in ("worse", "not distinguishable"):
        than = {"worse": "worse than its base", "not distinguishable": "not distinguishable from its base"}[verdict]
        remedy = "use more rows, a learning rate from `afina tune`, or another base (`afina models list`)"
        yield Finding("evaluation", "wrong", f"the adapted model is {than} by {name}", remedy)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_CHECKS = (_settings, _end, _numbers, _weights, _template, _learning, _held_out, _steps, _data, _size, _result)
