"""Upload to the Hugging Face hub: the other forms that were exported, else the adapter in PEFT's format; with a card.

Private unless asked otherwise. What goes out is listed: never rows, predictions, paths, or names of files of data.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afina.core.errors import OutputError, brief, counted
from afina.core.events import Listener, Notice
from afina.core.files import read_json, sha256
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.measure.pages.card import Published, published_card
from afina.models.sources.hub import HUB_ID
from afina.runs.facts import FACTS, read_facts
from afina.serving.exporters._protocol import COMMIT, Exporter, Form, HubBase, Making, Subject, Written

_CARD = "README.md"
# Of an adapter's folder; of a merged model's all files are its own.
_OF_AN_ADAPTER = (
    WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja",
)  # fmt: skip


class _Hub(Exporter):
    name = "hub"
    argument = "OWNER/NAME"
    uses_others = True

    def misread(self, argument: str) -> str:
        return "" if HUB_ID.fullmatch(argument) else "it needs the repository, as hub:OWNER/NAME"

    def problems(self, form: Form, subject: Subject) -> Iterator[str]:
        base = subject.hub_base
        if base is None:
            yield (
                f"the card names the base on the hub, and {subject.facts.name!r} is not from there; say which it is "
                "with --base-model OWNER/NAME@COMMIT"
            )
        elif not HUB_ID.fullmatch(base.hub_id) or (base.commit and not COMMIT.fullmatch(base.commit)):
            yield f"--base-model is {subject.base_model!r}; it takes OWNER/NAME or OWNER/NAME@COMMIT"
        if not subject.dry_run:
            from huggingface_hub import get_token

            if get_token() is None:
                yield "the hub's library has no token; log in with `hf auth login`, set HF_TOKEN, or try --dry-run"

    def write(self, form: Form, making: Making) -> Written:
        return Written(())

    def publish(self, form: Form, making: Making, about: Sequence[str], listener: Listener) -> dict[str, Any]:
        subject = making.subject
        files = _files(form, making, about)
        sizes = {name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in files.items()}
        visible = "public" if subject.public else "private"
        found: dict[str, Any] = {"repository": form.argument, "visibility": visible, "files": sizes}
        if subject.dry_run:
            return found | {"uploaded": False}
        megabytes = sum(sizes.values()) / 1e6
        listener(
            Notice(f"uploading {counted(len(files), 'file')}, {megabytes:,.1f} MB, to {form.argument} ({visible})")
        )
        return found | {"uploaded": True, "url": _upload(form.argument, files, subject.public, making.place)}


Files = dict[str, bytes | Path]


def _files(form: Form, making: Making, about: Sequence[str]) -> Files:
    """What is uploaded, by its name in the repository."""
    found: Files = {}
    for written in making.written.values():
        for name in written.files:
            path = making.place / name
            if path.is_file():
                found[path.name] = path
    is_adapter = not found
    if is_adapter:
        names = [name for name in _OF_AN_ADAPTER if (making.adapter / name).is_file()]
        found = {name: making.adapter / name for name in names}
    base = making.subject.hub_base
    assert base is not None, "problems() asks for it"
    facts = read_facts(making.adapter)
    if is_adapter:
        found[CONFIG] = _json(_adapter_config(making.adapter, base))
    if facts and (is_adapter or FACTS in found):
        found[FACTS] = _json(_public_facts(facts, base) | ({} if is_adapter else {"quantize": None}))
    evaluation = making.run / "evaluation.json"
    hashes = {"weights of the base": facts["base"]["sha256"]} if facts else {}
    published = Published(
        name=form.argument,
        base_model=base.hub_id,
        commit=base.commit,
        licence=making.subject.facts.licence,
        library="peft" if is_adapter else "transformers" if "config.json" in found else "gguf",
        is_adapter=is_adapter,
        rank=making.subject.lora.rank if making.subject.lora else None,
        hashes=hashes | {"the adapter": sha256(making.adapter / WEIGHTS)},
        about=_with_peft(form.argument, base, making.subject) if is_adapter else about,
    )
    found[_CARD] = published_card(published, facts, read_json(evaluation) if evaluation.is_file() else None).encode()
    return found


def _with_peft(name: str, base: HubBase, subject: Subject) -> list[str]:
    rank = subject.lora.rank if subject.lora else 16
    lines = [
        "    from peft import PeftModel", f"    from transformers import {subject.task.auto_class}",
        f'    base = {subject.task.auto_class}.from_pretrained("{base.hub_id}")',
        f'    model = PeftModel.from_pretrained(base, "{name}")',
    ]  # fmt: skip
    if subject.task.continues_text:
        served = f"{subject.name}={name}"
        lines += ["", f"    vllm serve {base.hub_id} --enable-lora --max-lora-rank {rank} --lora-modules {served}"]
    return lines


def _adapter_config(adapter: Path, base: HubBase) -> dict[str, Any]:
    raw: dict[str, Any] = read_json(adapter / CONFIG)
    return raw | {"base_model_name_or_path": base.hub_id, "revision": base.commit}


def _public_facts(facts: dict[str, Any], base: HubBase) -> dict[str, Any]:
    """The facts by which Afina uses the adapter, without where its base lay here."""
    kept = {name: value for name, value in facts["base"].items() if name != "path"}  # which older ones had
    record = kept | {"name": base.hub_id, "kind": "hub", "hub_id": base.hub_id, "revision": base.commit}
    load = {"name": base.hub_id, "revision": base.commit}
    others = {name: value for name, value in facts.items() if name not in ("reasons", "merged_from")}
    return others | {"base": record, "load": load}


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _upload(repository: str, files: Files, public: bool, place: Path) -> str:
    """Uploads in one commit; its address. Raises `OutputError`."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _explained(repository, place):
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and api.model_info(repository).private is False:
            raise OutputError(f"{repository} is public on the hub", "give --public, or another repository")
        operations = [CommitOperationAdd(name, what) for name, what in files.items()]
        commit = api.create_commit(repository, operations, commit_message="Exported by Afina")
        return str(commit.commit_url)


@contextmanager
def _explained(repository: str, place: Path) -> Iterator[None]:
    """What the hub's library raises, as `OutputError`; without its progress bars."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except OutputError:
        raise
    except Exception as error:  # the hub's library raises many kinds
        raise OutputError(
            f"{repository} could not be uploaded ({type(error).__name__}: {brief(error)})",
            f"all files are in {place}, verified; try again with --overwrite once it is mended",
        ) from error
    finally:
        if not silent:
            enable_progress_bars()


EXPORTER = _Hub()
