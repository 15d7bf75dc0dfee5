"""What happened in a run that failed or came out poor, told from its files: the problems that people have with fine-tuning."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from afina.core.finding import Finding
from afina.core.machine import memory_limit
from afina.core.task import TASKS
from afina.lora.peft_files import WEIGHTS, not_finite
from afina.runs.files import RunFiles, read_run
from afina.training.settings import MOST_BATCH

_NEARLY_ALL = 0.85  # of the memory
_RISEN, _JUMP = 0.1, 1.0  # nats a token
_UNMOVED = 0.02  # of the first loss
_MANY_REJECTED = 0.1


def examine(folder: Path) -> list[Finding]:
    """What is wrong with the run in `folder`, the gravest first. Raises `InputError` where it holds none."""
    run = read_run(folder)
    found = run.damaged + [each for check in _CHECKS for each in check(run)]
    return sorted(found, key=lambda each: ("wrong", "slow", "ok").index(each.state))


def _ended(run: RunFiles) -> Iterator[Finding]:
    """Runs that were cut off, in training or after it (out of memory: problems 9 and 10)."""
    resume = f"afina train --resume {run.folder}"
    if run.evaluated:
        if run.done is None and not any(each.what == "metrics.jsonl" for each in run.damaged):
            found = "it does not say how training ended, though the run was evaluated: cut off, or not there"
            yield Finding("metrics.jsonl", "wrong", found, "take it from a copy; the adapter does without it")
        return
    if run.done is None:
        most = max((step.memory_gb for step in run.steps), default=0.0)
        limit = memory_limit() / 1e9
        last = f"after step {run.steps[-1].step} of {run.steps[-1].total}" if run.steps else "before its first step"
        if most > _NEARLY_ALL * limit:
            smaller = "--train.tokens_per_pass 512, --train.checkpoint_activations true or --quantize nf4"
            found = f"it was cut off {last} with {most:.1f} of {limit:.1f} GB in use: most likely out of memory"
            yield Finding("end", "wrong", found, f"begin anew with {smaller}")
        else:
            yield Finding("end", "wrong", f"it was cut off {last}: killed, or the machine went down", resume)
    elif run.done.reason == "interrupted":
        yield Finding("end", "wrong", f"it was interrupted after step {run.done.steps}", resume)
    else:
        found = "training came to its end, the evaluation did not: killed, or out of memory in it"
        yield Finding("end", "wrong", found, f"{resume} evaluates it")


def _numbers(run: RunFiles) -> Iterator[Finding]:
    """Losses and weights that are no numbers (11), a loss of zero (2), no gradient (12)."""
    broken = next(
        (step for step in run.steps if not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))), None
    )
    if broken:
        found = f"the loss became {broken.loss} at step {broken.step} (rate {broken.learning_rate:.2g})"
        yield Finding("loss", "wrong", found, "lower --train.learning_rate to a third, or use --precision fp32")
    if run.steps and run.steps[0].loss == 0:
        yield Finding(
            "loss",
            "wrong",
            "it was zero from the first step: no token carried a label",
            "`afina data show FILE --row 1` shows what is learned",
        )
    if run.steps and all(step.grad_norm == 0 for step in run.steps):
        yield Finding(
            "gradients",
            "wrong",
            "no gradient reached the adapter, so nothing was trained",
            "choose other layers with --lora.target_modules",
        )


def _weights(run: RunFiles) -> Iterator[Finding]:
    """An adapter that is absent, damaged, not finite or changes nothing (5, 11, 20)."""
    if run.weights is None and run.evaluated:
        yield Finding(
            "adapter", "wrong", f"{WEIGHTS} is not there, though the run was evaluated: it was moved or deleted",
            "take it from a copy, or train anew" + (f": afina train --config {run.folder}/config.yaml --out DIR" if run.config else ""),
        )  # fmt: skip
    elif run.weights is None and run.steps:
        found = "there is none: the run ended before the first was saved"
        yield Finding("adapter", "wrong", found, f"afina train --resume {run.folder}")
    if not run.weights:
        return
    if bad := not_finite(run.weights):
        yield Finding(
            "adapter", "wrong", f"{len(bad)} of its tensors are not finite ({bad[0]})", "train anew with a lower rate"
        )
    pairs = [value for name, value in run.weights.items() if name.endswith("lora_B.weight")]
    if pairs and not any(value.any() for value in pairs):
        yield Finding("adapter", "wrong", "every B is zero: it changes nothing", "train it, longer or at a higher rate")
    heads = run.peft.get("modules_to_save") or []
    absent = [head for head in heads if not any(f".{head}." in name for name in run.weights)]
    task = TASKS.get(str(run.facts.get("task")))
    if task and task.needs_classes and absent:
        found = f"the classifier's head ({', '.join(absent)}) is not in it: it would answer at random"
        yield Finding("adapter", "wrong", found, "train anew; keep adapter_model.safetensors whole when copying")


def _template(run: RunFiles) -> Iterator[Finding]:
    """A chat template or tokenizer that is not the one of training (4)."""
    file = run.folder / "adapter" / "chat_template.jinja"
    told = run.facts.get("template_sha256")
    if file.exists() and told and hashlib.sha256(file.read_text(encoding="utf-8").encode()).hexdigest() != told:
        yield Finding(
            "template",
            "wrong",
            "adapter/chat_template.jinja is not the one it was trained with",
            "put it back; prompts in another form get poor answers",
        )


def _learning(run: RunFiles) -> Iterator[Finding]:
    """Rates too high or too low (17), overfitting (16), jumps on resuming (15), large batches (13)."""
    losses = [loss for loss in run.losses if math.isfinite(loss)]
    third = len(losses) // 3
    if third >= 3:
        first, last = _mean(losses[:third]), _mean(losses[-third:])
        best = min(losses)
        if last > first + _RISEN:
            yield Finding(
                "learning rate",
                "wrong",
                f"the loss rose from {first:.2f} to {last:.2f}",
                "lower --train.learning_rate to a third",
            )
        elif first - best < _UNMOVED * first:
            yield Finding(
                "learning rate",
                "slow",
                f"the loss hardly moved ({first:.2f} to {last:.2f})",
                "raise --train.learning_rate threefold, or train longer; `afina tune` searches it",
            )
    seen = [each for each in run.held_out if each.step]
    untouched = next((each for each in run.held_out if not each.step), None)
    low = min(seen, key=lambda each: each.cost, default=None)
    if low and untouched and low.cost >= untouched.cost:
        found = (
            f"the held-out {low.measure} was {untouched.value:.3f} before training and {low.value:.3f} at best after"
        )
        yield Finding("learning", "wrong", found, "more rows, more --epochs, or a rate from `afina tune`")
    if low and seen[-1].cost > low.cost + _RISEN:
        lowest, rose = ("lowest", "rose") if low.lower_is_better else ("highest", "fell")
        found = (
            f"the held-out {low.measure} was {lowest} after step {low.step} ({low.value:.2f}) "
            f"and {rose} to {seen[-1].value:.2f}"
        )
        yield Finding(
            "overfitting",
            "slow",
            f"{found}; the adapter is the one of step {low.step}",
            "fewer --epochs, or more rows",
        )
    steps = [step.step for step in run.steps]
    if steps != list(range(1, len(steps) + 1)):
        yield Finding(
            "steps",
            "wrong",
            "metrics.jsonl does not count its steps one by one: two runs wrote into it, or a part is lost",
            "train anew with --overwrite",
        )
    for before, after in zip(run.steps, run.steps[1:], strict=False):
        if after.loss > before.loss + _JUMP and after.loss > 2 * before.loss and before.step > 10:
            yield Finding(
                "steps",
                "slow",
                f"the loss jumped at step {after.step}, from {before.loss:.2f} to {after.loss:.2f}",
                "look at the rows of that step; a lower rate is steadier",
            )
            break
    size = run.config.get("train", {}).get("batch_size") or 0
    if size > MOST_BATCH:
        yield Finding(
            "batch",
            "slow",
            f"{size} rows a step: large batches hurt LoRA more than full fine-tuning",
            f"stay under {MOST_BATCH}",
        )


def _data(run: RunFiles) -> Iterator[Finding]:
    """Rows that were left out or cut (3, 18)."""
    rows, data = run.facts.get("rows", {}), run.config.get("data", {})
    own_test = data.get("test") or data.get("test_path")  # else the rows that are tested are the held-out ones
    total = sum(n for name, n in rows.items() if name != "test" or own_test) + len(run.rejected)
    if run.rejected and len(run.rejected) > _MANY_REJECTED * total:
        reason, count = Counter(str(each.get("reason", "")) for each in run.rejected).most_common(1)[0]
        found = f"{len(run.rejected)} of {total} rows were not used; {count} of them: {reason}"
        yield Finding("data", "wrong", found, "rejected.jsonl names each; `afina data check` says what to do")
    if data.get("too_long") == "cut":
        yield Finding("data", "ok", "long prompts were cut to the base's context (--data.too_long cut)")
    if 0 < rows.get("train", 0) < 50:
        yield Finding(
            "data",
            "slow",
            f"{rows['train']} rows to learn from are few",
            "a hundred and more teach a form, a thousand a task",
        )


def _size(run: RunFiles) -> Iterator[Finding]:
    """Whole embeddings saved for a few new words (8), tied heads trained apart (7), merging after few bits (6)."""
    saved = run.peft.get("modules_to_save") or []
    if run.config.get("method") == "lora" and any("embed" in name or name == "lm_head" for name in saved):
        found = f"{', '.join(saved)} are saved whole, which makes the adapter large"
        yield Finding("adapter's size", "slow", found, "--lora.trainable_tokens trains the rows of single words only")
    if run.config.get("quantize"):
        found = f"the base was in {run.config['quantize']} in training"
        yield Finding(
            "merging",
            "ok",
            f"{found}: `afina adapters merge` takes it in all its bits and says how far the logits move",
        )


def _result(run: RunFiles) -> Iterator[Finding]:
    """What the evaluation said (1, 2, 5, 16), and answers that do not end."""
    if run.evaluation is None:
        return
    for line in run.evaluation["findings"]:
        yield Finding("evaluation", "wrong", line)
    name = run.evaluation["main_metric"]
    verdict = run.evaluation["difference"][name]["verdict"]
    if verdict in ("worse", "not distinguishable"):
        found = (
            f"the adapted model is {verdict} than its base"
            if verdict == "worse"
            else "the adapted model cannot be told from its base"
        )
        yield Finding(
            "evaluation",
            "wrong",
            f"{found} by {name}",
            "more rows, a rate from `afina tune`, or another base (`afina models list`)",
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_CHECKS = (_ended, _numbers, _weights, _template, _learning, _data, _size, _result)
