"""What the jobs that write an adapter or a model share."""

from pathlib import Path

from afina.core.config import Result
from afina.core.errors import AdapterError
from afina.core.files import leads_out, write_atomic
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.runs.facts import FACTS, read_facts, write_facts


class WrittenAdapter(Result):
    adapter: Path
    """Folder of the new adapter."""


def copy(file: Path, out: Path) -> None:
    """Copies a file into the folder `out`. Raises `AdapterError` where a link leads out of the file's own folder: what
    is copied may be published."""
    if elsewhere := leads_out(file, file.parent):
        raise AdapterError(f"{file} is a link to {elsewhere}, outside its folder", "remove the link")
    write_atomic(out / file.name, file.read_bytes())


def copy_companions(folder: Path, out: Path, place: Path) -> None:
    """Copies what makes an adapter ready for generation into `out`, which will lie in `place`: its tokenizer, its
    template and Afina's facts. Raises `AdapterError`, as `copy` does."""
    for file in folder.iterdir():
        if file.name not in (CONFIG, WEIGHTS, FACTS, "README.md") and file.is_file():
            copy(file, out)
    if facts := read_facts(folder):
        write_facts(out, facts, place)
