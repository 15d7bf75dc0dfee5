"""An export from beginning to end: checked, written beside its place, read back, compared, described, moved there."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from afina.core.errors import VerificationFailed, counted
from afina.core.events import Listener, Notice
from afina.core.files import sha256, write_atomic, write_json
from afina.lora.peft_files import WEIGHTS
from afina.measure.evaluation import defined
from afina.measure.metrics import main_metric
from afina.measure.outputs import EvaluationSet
from afina.measure.pages.summary import interval, label, number
from afina.serving.adapters import content_hash
from afina.serving.comparison import (
    Comparison,
    Measured,
    Samples,
    check_samples,
    check_tokenizer,
    compare,
    effect_of,
    measure,
    updates_of,
    weights_of,
)
from afina.serving.exporters import Form, Making, Written
from afina.serving.merged import merge_checked
from afina.serving.proof import sample
from afina.version import __version__

RECORD, GUIDE = "export.json", "EXPORT.md"
_PACKAGES = ("torch", "transformers", "safetensors", "gguf")


@dataclass(frozen=True)
class Reference:
    """What a file is compared with: the adapted model on the rows, and the `effect` of its adapter in KL per token."""

    rows: EvaluationSet
    measured: Measured
    effect: float


def reference_of(making: Making, rows: EvaluationSet, listener: Listener) -> Reference:
    """Raises `AdapterError` where the adapter changes nothing."""
    base = making.adapted.base
    measured = measure(base, rows, listener, "the adapted model")
    return Reference(rows, measured, effect_of(base, rows, measured))


def write_forms(making: Making, forms: Sequence[Form], listener: Listener) -> dict[Form, Samples]:
    """Writes every form into the folder, and lets the model go; by form, samples of the weights that it must hold: the
    merged ones, or what the adapter adds to each layer."""
    base = making.adapted.base
    updates, weights = updates_of(base.model.module), Samples()
    for form in forms:
        if form.exporter.merges and not weights:
            listener(Notice("merging the adapter into its base, in fp32"))
            merge_checked(base, sample(base, making.run / "predictions.jsonl"))
            weights = weights_of(base.model.module)
        if not form.exporter.uses_others:
            listener(Notice(f"writing {form}"))
        making.written[form] = form.exporter.write(form, making)
    making.release()
    return {form: weights if form.exporter.merges else updates for form in forms}


def check_form(
    form: Form, making: Making, reference: Reference, samples: Samples, listener: Listener
) -> Comparison | None:
    """Reads the form back and compares it with the adapted model. Raises `VerificationFailed` where its file is wrong;
    what quantisation costs is told."""
    written = making.written[form]
    read = form.exporter.read(written, making)
    if read is None:
        return None
    what = written.files[0]
    check_tokenizer(making.subject.base, read, reference.rows, what)
    of_file = weights_of if form.exporter.merges else updates_of
    check_samples(samples, of_file(read.model.module), written.weights, what)
    lower = main_metric(reference.rows.kind).lower_is_better
    found = compare(reference.measured, measure(read, reference.rows, listener, what), lower)
    if written.logits is not None and not found.relative <= written.logits:
        raise VerificationFailed(
            f"{what}, read back, is not the adapted model: the logits differ by {found.relative:.2g} of the largest, "
            f"allowed is {written.logits:g}",
            "nothing was kept; please report it, with the adapter's adapter_config.json and the base's config.json",
        )
    if not found.kl < reference.effect:
        text = (
            f"{what} is as far from the adapted model (KL {found.kl:.2g} nats per token) as the base is "
            f"({reference.effect:.2g})"
        )
        if not form.exporter.merges:
            raise VerificationFailed(f"{text}: the adapter is lost in it", "nothing was kept; please report it")
        listener(Notice(f"{text}: what was learned is within what rounding changes; use a finer type", warning=True))
    return found


def record(
    making: Making, reference: Reference, compared: dict[Form, Comparison], about: Sequence[str]
) -> dict[str, Any]:
    """Writes EXPORT.md and export.json; the content of the latter."""
    subject, folder = making.subject, making.folder
    lines = [
        f"# {subject.name}, exported by Afina {__version__}", "",
        "Each file was read back and compared with the adapted model on "
        f"{counted(len(reference.rows.rows), 'row')} ({reference.rows.source}).", "",
        *_table(reference, compared), *(["", "## How to run it", "", *about] if about else []),
    ]  # fmt: skip
    notes = [f"- {form}: {note}" for form, written in making.written.items() for note in written.notes]
    if notes:
        lines += ["", "## Notes", "", *notes]
    write_atomic(folder / GUIDE, "\n".join(lines).rstrip() + "\n")
    facts = subject.facts
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    content = {
        "afina": __version__,
        "name": subject.name,
        "base": {"name": facts.public_name, "sha256": facts.sha256},
        "adapter": {"sha256": sha256(making.adapter / WEIGHTS), "hash": content_hash(making.adapter)},
        "rows": {"count": len(reference.rows.rows), "source": reference.rows.source},
        "metric": main_metric(reference.rows.kind).name,
        "score": reference.measured.score.score(),
        "effect_kl": reference.effect,
        "forms": {str(form): _form_record(written, compared.get(form)) for form, written in making.written.items()},
        "files": {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
        "versions": {name: version(name) for name in _PACKAGES},
    }
    found: dict[str, Any] = defined(content)
    write_json(folder / RECORD, found)
    return found


def _form_record(written: Written, found: Comparison | None) -> dict[str, Any]:
    differences = {"differences": asdict(found) | {"relative": found.relative}} if found else {}
    return {"files": list(written.files), "notes": list(written.notes), **written.facts, **differences}


def guide(making: Making) -> list[str]:
    """How other programs run what was written, as lines of Markdown."""
    lines: list[str] = []
    for form, written in making.written.items():
        lines += [*form.exporter.instructions(form, written, making.subject), ""]
    return lines[:-1]


def _table(reference: Reference, compared: dict[Form, Comparison]) -> Iterator[str]:
    name = main_metric(reference.rows.kind).name
    yield (
        f"| form | largest, mean difference of logits | KL per token | first tokens equal | {label(name)} (95 %) | "
        "difference (95 %) |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    yield f"| adapted model |  |  |  | {number(name, defined(reference.measured.score.score()))} |  |"
    for form, found in compared.items():
        each = defined(asdict(found))
        score, low, high = (number(name, value) for value in (each["score"], *each["interval"]))
        difference = number(name, each["difference"]["value"], sign=True)
        yield (
            f"| {form} | {found.largest:.2g}, {found.mean:.2g} | {found.kl:.2g} | {found.first_tokens:.1%} | "
            f"{score} ({low} to {high}) | {difference} ({interval(name, each['difference'])}) |"
        )
