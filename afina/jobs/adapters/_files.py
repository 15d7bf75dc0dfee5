"""What the jobs that write an adapter share."""

from pathlib import Path

from afina.core.config import Result
from afina.core.files import write_atomic
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS


class WrittenAdapter(Result):
    adapter: Path
    """Folder of the new adapter."""


def copy_companions(folder: Path, out: Path) -> None:
    """Copies what makes an adapter ready for generation: its tokenizer, its template and Afina's facts."""
    for file in folder.iterdir():
        if file.name not in (CONFIG, WEIGHTS, "README.md") and file.is_file():
            write_atomic(out / file.name, file.read_bytes())
