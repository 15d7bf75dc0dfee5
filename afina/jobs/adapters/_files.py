"""What the jobs that write an adapter or a model share."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afina.core.config import Result
from afina.core.errors import AdapterError, writing
from afina.core.files import leads_out, write_atomic
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.runs.facts import FACTS, read_facts, write_facts


class WrittenAdapter(Result):
    adapter: Path
    """Folder of the new adapter."""


def copy_companions(folder: Path, out: Path) -> None:
    """Copies what makes an adapter ready for generation: its tokenizer, its template and Afina's facts. Raises
    `AdapterError` where a link leads elsewhere: what is copied may be published."""
    for file in folder.iterdir():
        if file.name not in (CONFIG, WEIGHTS, FACTS, "README.md") and file.is_file():
            elsewhere = leads_out(file, folder)
            if elsewhere:
                raise AdapterError(f"{file} is a link to {elsewhere}, outside the adapter's folder", "remove the link")
            write_atomic(out / file.name, file.read_bytes())
    if facts := read_facts(folder):
        write_facts(out, facts)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder for the files of `out`, which are there when the block has ended well, and not before."""
    fresh = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out))
    try:
        yield temporary
        with writing(out):
            for file in temporary.iterdir():
                file.chmod(0o644)
                file.replace(out / file.name)
            temporary.rmdir()
    except BaseException:
        shutil.rmtree(out if fresh else temporary, ignore_errors=True)
        raise
