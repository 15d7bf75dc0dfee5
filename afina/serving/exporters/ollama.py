"""A Modelfile for Ollama beside a merged GGUF file.

Ollama runs no Jinja, and guesses a template where none is stated: it is always stated, in Go's words, made from what
the run's own template writes (`_turns`). Ollama itself was not run with it: its grammar and Go's text/template were.
"""

from collections.abc import Iterator, Sequence

from afina.core.errors import OutputError, shortened
from afina.core.files import write_atomic
from afina.data.layouts import ONE_ANSWER
from afina.serving.exporters._protocol import Exporter, Form, Making, Subject, Written
from afina.serving.exporters._turns import NoTurns, turns_of
from afina.serving.exporters.gguf import base_file

_MODELFILE, _WITH_ADAPTER = "Modelfile", "Modelfile.adapter"
_LAST = "0.34.0"  # the last Ollama that creates models with ADAPTER
_LONGEST = 32_768  # tokens; a longer context takes memory that has to be asked for


class _Ollama(Exporter):
    name = "ollama"
    uses_others = True

    def needs(self, forms: Sequence[Form]) -> Iterator[tuple[str, str]]:
        if not any(form.exporter.name == "gguf" for form in forms):
            yield "gguf", "Q8_0"

    def problems(self, form: Form, subject: Subject) -> Iterator[str]:
        if not subject.task.continues_text:
            yield "Ollama runs models that write text; export safetensors"
            return
        try:
            template = turns_of(subject.base.tokenizer).go()
        except NoTurns as error:
            yield f"the chat template cannot be said in Go's words: {error}; export gguf, whose file holds the template"
            return
        for text in (template, subject.system or ""):
            if '"""' in text or text.endswith('"'):
                yield f'a Modelfile cannot hold """ or a last ", as {shortened(text)} has; export gguf'

    def write(self, form: Form, making: Making) -> Written:
        merged = next(each for other, each in making.written.items() if other.exporter.name == "gguf")
        lora = next((each for other, each in making.written.items() if other.exporter.name == "gguf-lora"), None)
        files = [_MODELFILE]
        write_atomic(making.folder / _MODELFILE, modelfile(making.subject, merged.files[0]))
        if lora:
            text = modelfile(making.subject, base_file(making.subject), lora.files[0])
            write_atomic(making.folder / _WITH_ADAPTER, text)
            files.append(_WITH_ADAPTER)
        return Written(tuple(files))

    def instructions(self, form: Form, written: Written, subject: Subject) -> Iterator[str]:
        yield "### Modelfile: Ollama"
        yield ""
        yield "In this folder:"
        yield ""
        yield f"    ollama create {subject.name.lower()} -f {_MODELFILE}"
        yield f"    ollama run {subject.name.lower()} 'a question'"
        yield ""
        yield "TEMPLATE writes what the chat template writes that was trained with, without tools. Contents are taken"
        yield "as they are, where some chat templates remove white space around them. Afina's tests render such ones"
        yield "with Go's own text/template; Ollama itself was not run."
        if _WITH_ADAPTER in written.files:
            yield ""
            yield f"`{_WITH_ADAPTER}` puts the adapter on the base's own file. **Ollama {_LAST} or older**: newer ones"
            yield f"refuse ADAPTER when a model is created. The base's file goes beside it: `{base_file(subject)}`."


def modelfile(subject: Subject, source: str, adapter: str = "") -> str:
    """The Modelfile of the GGUF file `source` beside it, with the run's template, stops, context and temperature."""
    if any(not mark.isprintable() for mark in source):
        raise OutputError(f"{source!r} cannot stand in a Modelfile", "give another --name")
    parts = [f"# Ollama {_LAST} or older: newer ones refuse ADAPTER" if adapter else "", f"FROM ./{source}"]
    parts.append(f"ADAPTER ./{adapter}" if adapter else "")
    parts.append(f'TEMPLATE """{turns_of(subject.base.tokenizer).go()}"""')
    parts.append(f'SYSTEM """{subject.system}"""' if subject.system else "")
    parts += [f'PARAMETER stop "{_quoted(text)}"' for text in subject.base.tokenizer.stop_texts]
    parts.append(f"PARAMETER num_ctx {min(subject.facts.context_length, _LONGEST)}")
    parts.append("PARAMETER temperature 0" if subject.kind in ONE_ANSWER else "")
    parts.append(f'LICENSE """{subject.facts.licence}"""' if subject.facts.licence else "")
    return "\n".join(part for part in parts if part) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


EXPORTER = _Ollama()
