"""The merged model in transformers' format: shards of 5 GB at most, tokenizer, chat template."""

from collections.abc import Iterator
from pathlib import Path

from afina.models.load import Base
from afina.runs.opening import open_run
from afina.serving.exporters._protocol import Exporter, Form, Making, Subject, Written
from afina.serving.merged import DTYPES, NAMES, dtype_of, write_merged

# By how much a rounded weight may differ, of its size, and logits of the largest.
_ROUNDING = {"fp32": (1e-6, 1e-3), "bf16": (4e-3, 0.3), "fp16": (1e-3, 0.1)}


def folder_of(subject: Subject) -> str:
    return f"{subject.name}-merged"


class _Safetensors(Exporter):
    name = "safetensors"
    argument = "PRECISION"
    merges = True

    @property
    def usage(self) -> str:
        return f"safetensors (or safetensors:{'|'.join(DTYPES)})"

    @property
    def choices(self) -> tuple[str, ...]:
        return ("",)  # the base's own precision

    def misread(self, argument: str) -> str:
        return "" if not argument or argument in DTYPES else f"its precision is one of {', '.join(DTYPES)}"

    def bytes_expected(self, form: Form, subject: Subject) -> int:
        return subject.facts.parameters * (4 if form.argument == "fp32" else 2)

    def write(self, form: Form, making: Making) -> Written:
        name, dtype = folder_of(making.subject), dtype_of(making.adapted.base, form.argument or None)
        folder = making.folder / name
        folder.mkdir()
        write_merged(making.adapted, making.run, dtype, folder, making.place / name)
        weights, logits = _ROUNDING[NAMES[dtype]]
        files = sorted(f"{name}/{path.name}" for path in folder.iterdir())
        return Written((name, *files), weights=weights, logits=logits, facts={"precision": NAMES[dtype]})

    def read(self, written: Written, making: Making) -> Base:
        folder: Path = making.folder / written.files[0]
        return open_run(folder, device=making.device, exact=True).base

    def instructions(self, form: Form, written: Written, subject: Subject) -> Iterator[str]:
        name = written.files[0]
        yield f"### {name}: transformers, vLLM, SGLang, TGI"
        yield ""
        yield f"    afina generate {name} 'a question'"
        if not subject.task.continues_text:
            yield ""
            yield f'In Python: `transformers.{subject.task.auto_class}.from_pretrained("{name}")`.'
            return
        yield f"    vllm serve ./{name} --served-model-name {subject.name}"
        yield ""
        yield "In Python, with the chat template that was trained with:"
        yield ""
        yield "    from transformers import AutoModelForCausalLM, AutoTokenizer"
        yield f'    tokenizer = AutoTokenizer.from_pretrained("{name}")'
        yield f'    model = AutoModelForCausalLM.from_pretrained("{name}")'
        yield '    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a question"}],'
        yield '        add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        yield "    print(tokenizer.decode(model.generate(**ids, max_new_tokens=200)[0]))"


EXPORTER = _Safetensors()
