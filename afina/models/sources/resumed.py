"""Downloads of large files that go on where a process that was killed left them."""

from pathlib import Path

from afina.core.process.locks import is_at, take


def fetch_resumed(url: str, target: Path, size: int | None = None, headers: dict[str, str] | None = None) -> None:
    """Fetches `url` into `target`, which has `size` bytes where that is known.

    What there is so far lies in `target.incomplete`, and stays there whatever ends the process; a server that sends
    parts of a file is asked for the rest. The content is not checked: that is the caller's, who knows its hash. Raises
    what the hub's library raises, which repeats what fails in passing.
    """
    from huggingface_hub.file_download import http_get

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.incomplete")
    while not target.exists():
        with partial.open("ab") as file:
            if take(file.fileno(), wait=True) and not is_at(file.fileno(), partial):
                continue  # another process has fetched it meanwhile
            if target.exists():
                partial.unlink(missing_ok=True)  # made after that
                return
            if size is not None and file.tell() > size:
                file.truncate(0)
            held = file.seek(0, 2)
            http_get(url, file, resume_size=held, headers=headers, expected_size=size, displayed_filename=target.name)
            file.flush()
            partial.replace(target)
