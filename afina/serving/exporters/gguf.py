"""The merged model as a GGUF file, for llama.cpp, LM Studio and what is built on them."""

from collections.abc import Iterator
from pathlib import Path

from afina.core.errors import InputError
from afina.data.layouts import ONE_ANSWER
from afina.models.load import Base, load_base
from afina.serving.exporters._protocol import Exporter, Form, Making, Subject, Written
from afina.serving.gguf import TYPES, GgufFacts, plan_model, write_model

# By how much a weight may differ, of its size, and logits of the largest. Quantised weights of a wrong tensor, or of
# rows in another order, differ by more than their size; those of the right one by some hundredths.
_ROUNDING = {"F32": (1e-6, 1e-3), "F16": (1e-3, 0.1), "BF16": (4e-3, 0.3)}
_QUANTISED = 0.3
_AGAIN = "the base's own file is quantised already; gguf-lora beside that very file quantises nothing a second time"


def gguf_facts(subject: Subject) -> GgufFacts:
    organisation, _, name = subject.base_name.rpartition("/")
    return GgufFacts(
        name=subject.name,
        licence=subject.facts.licence,
        base_name=name,
        base_organisation=organisation or None,
        base_url=f"https://huggingface.co/{subject.base_name}" if subject.hub_base else None,
        template=subject.base.tokenizer.inner.chat_template,
    )


def base_file(subject: Subject) -> str:
    """What the base's own GGUF file is called: as it is where it is one, else as the guide has it written."""
    path = Path(subject.facts.path)
    return path.name if path.suffix == ".gguf" else f"{subject.base_name.rpartition('/')[2]}-F16.gguf"


class _Gguf(Exporter):
    name = "gguf"
    argument = "TYPE"
    merges = True

    @property
    def usage(self) -> str:
        return f"gguf:TYPE ({', '.join(TYPES)})"

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(TYPES)

    def misread(self, argument: str) -> str:
        return "" if argument in TYPES else f"its type is one of {', '.join(TYPES)}"

    def problems(self, form: Form, subject: Subject) -> Iterator[str]:
        if not subject.task.continues_text:
            yield "GGUF files are of models that write text; export safetensors"
            return
        try:
            plan_model(subject.base, form.argument)
        except InputError as error:
            yield f"{'; '.join(error.problems)}; {error.remedy}"

    def bytes_expected(self, form: Form, subject: Subject) -> int:
        try:
            return plan_model(subject.base, form.argument).bytes
        except InputError:
            return 0  # told as a problem

    def write(self, form: Form, making: Making) -> Written:
        name = f"{making.subject.name}-{form.argument}.gguf"
        base = making.adapted.base
        weights = base.model.module.state_dict().items()
        plan = write_model(base, weights, making.folder / name, form.argument, gguf_facts(making.subject))
        weight, logits = _ROUNDING.get(form.argument, (_QUANTISED, None))
        types = sorted(set(plan.types.values()))
        again = (_AGAIN,) if logits is None and base.facts.path.endswith(".gguf") else ()
        return Written((name,), (*plan.fallbacks, *plan.notes, *again), weight, logits, {"types": types})

    def read(self, written: Written, making: Making) -> Base:
        path = making.folder / written.files[0]
        return load_base(str(path), precision="fp32", device=making.device)

    def instructions(self, form: Form, written: Written, subject: Subject) -> Iterator[str]:
        (name,), cold = written.files, " --temp 0" if subject.kind in ONE_ANSWER else ""
        system = f" -sys '{subject.system}'" if subject.system and "'" not in subject.system else ""
        yield f"### {name}: llama.cpp, LM Studio"
        yield ""
        yield f"    llama-cli -m {name} --jinja -cnv{cold}{system}"
        yield f"    llama-server -m {name} --jinja --port 8080{cold}"
        yield ""
        yield "The chat template is in the file; `--jinja` uses it as it stands. LM Studio takes the file by"
        yield ""
        yield f"    lms import {name}"


EXPORTER = _Gguf()
