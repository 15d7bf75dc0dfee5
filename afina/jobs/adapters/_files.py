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


def copy_companions(folder: Path, out: Path, place: Path) -> None:
    """Copies what makes an adapter ready for generation into `out`, which will lie in `place`: its tokenizer, its
    template and Afina's facts. Raises `AdapterError` where a link leads elsewhere: what is copied may be published."""
    for file in folder.iterdir():
        if file.name not in (CONFIG, WEIGHTS, FACTS, "README.md") and file.is_file():
            elsewhere = leads_out(file, folder)
            if elsewhere:
                raise AdapterError(f"{file} is a link to {elsewhere}, outside the adapter's folder", "remove the link")
            write_atomic(out / file.name, file.read_bytes())
    if facts := read_facts(folder):
        write_facts(out, facts, place)
