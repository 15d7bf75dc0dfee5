"""What the jobs that write an adapter or a model share."""

from pathlib import Path

from afina.core.config import Result
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.runs.facts import FACTS, read_facts, write_facts
from afina.serving.merged import copy


class WrittenAdapter(Result):
    adapter: Path
    """Folder of the new adapter."""


def copy_companions(folder: Path, out: Path, place: Path) -> None:
    """Copies what makes an adapter ready for generation into `out`, which will lie in `place`: its tokenizer, its
    template and Afina's facts. Raises `AdapterError`, as `copy` does."""
    for file in folder.iterdir():
        if file.name not in (CONFIG, WEIGHTS, FACTS, "README.md") and file.is_file():
            copy(file, out)
    if facts := read_facts(folder):
        write_facts(out, facts, place)
