"""The forms in which a trained model leaves, a file each: merged safetensors, GGUF, GGUF LoRA, Ollama's Modelfile, the
hub.

Comes in: what is known of a run before its training (`Subject`), later the merged model (`Making`). Goes out: files,
how each is read back, and how other programs run it. To add a form is to add a file that gives `EXPORTER`, a
`_protocol.Exporter`. Public: `EXPORTERS`, `Exporter`, `Form`, `Making`, `Subject`, `Written`, `check_forms`,
`forms_of`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from afina.core.errors import SettingsError, counted
from afina.core.registry import Registry
from afina.serving.exporters._protocol import Exporter as Exporter
from afina.serving.exporters._protocol import Form as Form
from afina.serving.exporters._protocol import Making as Making
from afina.serving.exporters._protocol import Subject as Subject
from afina.serving.exporters._protocol import Written as Written

EXPORTERS: Registry[Exporter] = Registry("afina.serving.exporters", "EXPORTER", "form of export")
_MB = 1e6


def forms_of(words: Sequence[str]) -> list[Form]:
    """The forms that `--to` names, each once, and those that they need: 'gguf:Q8_0', 'ollama'. Those that use the
    files of others come last. Raises `SettingsError` that lists every word that is none."""
    forms, problems = list[Form](), list[str]()
    for word in words:
        name, _, argument = word.partition(":")
        if name not in EXPORTERS:
            problems.append(f"--to {word}: {EXPORTERS.unknown(name)}")
            continue
        form = Form(EXPORTERS[name], argument)
        if wrong := form.exporter.misread(argument):
            problems.append(f"--to {word}: {wrong}")
        elif form not in forms:
            forms.append(form)
    if not words:
        problems.append("--to names no form")
    if problems:
        raise SettingsError(problems, f"it takes, with commas between: {', '.join(each.usage for each in EXPORTERS)}")
    for form in list(forms):
        forms += [Form(EXPORTERS[name], argument) for name, argument in form.exporter.needs(forms)]
    return sorted(forms, key=lambda form: form.exporter.uses_others)


def check_forms(forms: Sequence[Form], subject: Subject, out: Path) -> None:
    """Raises one `SettingsError` that lists all that stands against the export: what a form cannot hold, a template
    that cannot be said, a disk that is too small."""
    problems = [f"--to {form}: {problem}" for form in forms for problem in form.exporter.problems(form, subject)]
    needed = sum(form.exporter.bytes_expected(form, subject) for form in forms)
    place = next(each for each in [out.absolute(), *out.absolute().parents] if each.exists())
    if needed > (free := shutil.disk_usage(place).free):
        problems.append(
            f"--to: {counted(len(forms), 'form')} take about {needed / _MB:,.0f} MB, and {free / _MB:,.0f} "
            f"MB are free where {out} is"
        )
    if problems:
        raise SettingsError(problems, "leave these out of --to, or change what is said of each")
