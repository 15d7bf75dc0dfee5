"""The kinds of files that `fuzz.py` changes: valid ones, and what reads each."""

import gzip
import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torch
from conftest import save_tiny, tiny_module
from gguf_files import write as write_gguf
from safetensors.torch import load_file, save_file

from afina.core.config import build, read_yaml
from afina.data.quality.checks import check
from afina.data.settings import DataSettings
from afina.jobs.adapters._unpickled import unpickled
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.lora.peft_files import load_adapter, save_adapter
from afina.measure.judge import _content
from afina.models.formats.card import licence_of, made_of
from afina.models.load import load_base
from afina.models.model import Writer
from afina.models.tokenizer import from_folder
from afina.runs.facts import read_facts
from afina.runs.files import read_run
from afina.search.base_trial import BaseTrial
from afina.search.files import Cost, ProofRows, RangeTest, Rates, Repeats, Share
from afina.settings import RunSettings

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, -5, 1 << 31, 1 << 63, 10**30, 0.5, -1e300, 1e-320, float("nan"), float("inf"),
    "", "x", "\0", "\ud800", "../x", "a" * 5000, "{{", "{% for", "{{ messages[9] }}", "auto", "0", [], [[]], [0] * 50,
    {}, {"a": {}}, {"": None}, ["x"], [None], [-1], "(a+)+$", "llama", "torch.float32", "\x1b[31m",
]  # fmt: skip
WORDS = ["a", "b", "q", "text", "messages", "role", "content", "prompt", "completion", "label", "user", "assistant"]
ROWS = [{"question": f"{i} apples, please", "answer": ["few", "many"][i % 2], "n": i} for i in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"{i} it is"}]}
    for i in range(6)
]
SETTINGS = "base: starter\ndata: &d\n  path: a.jsonl\n  prompt: '{q}'\n  completion: '{a}'\nlora: {rank: 8}\n"
OF_A_RUN = ("config.yaml", "metrics.jsonl", "evaluation.json", "predictions.jsonl", "forecast.json")
PACE = {"row": 0.1, "look": 0.2, "load": 3.0, "rest": 4.0}
OF_A_SEARCH: dict[str, tuple[Any, dict[str, Any]]] = {
    "share.json": (Share, {"share": 0.3}),
    "proof.json": (ProofRows, {"rows": 100}),
    "rates.json": (Rates, {"tried": [{"rate": 1e-3, "loss": 0.5, "rows": 8, "tokens": 99, "seconds": 1.5}]}),
    "cost.json": (Cost, {"peak_memory_gb": 1.5, "start_memory_gb": 0.5}),
    "probe.json": (
        RangeTest,
        {"rule": 1e-3, "low": 1e-4, "high": 2e-3, "rates": [1e-4, 1e-3], "losses": [2.0, 1.0], "pace": PACE}
        | {"seconds": 9.5, "full_rows": 500, "trial_rows": 100, "proof_seconds": 30.0},
    ),
    "repeats.json": (Repeats, {"best": [0.5], "defaults": [0.75], "seconds": [3.0, 4.0]}),
    "base.json": (
        BaseTrial,
        {"zero_shot": 0.1, "few_shot": None, "adapted": 0.5, "tokens_per_word": 1.5, "bits_per_byte": 2.0, "rows": 48}
        | {"bits_before": 9.0, "bits_after": 3.5, "bits": [3.0, 4.0], "seconds": 9.0, "revision": None},
    ),
}
INDEX = "model.safetensors.index.json"
RECORDED = Path(__file__).parents[1] / "tests" / "recorded" / "finished"


@dataclass(frozen=True)
class Kind:
    """A kind of file: valid ones by their names in a folder, of which `target` is changed, and what reads the folder.
    `invent` gives contents that were never meant."""

    name: str
    target: str
    folder: Path
    read: Callable[[Path], None]
    invent: Callable[[random.Random], bytes]


def any_bytes(draw: random.Random) -> bytes:
    starts = [b"", b"PK\x03\x04", b"PAR1", b"ARROW1\0\0", b"GGUF\x03\0\0\0", b"\x1f\x8b\x08", b"{", b"[", b"\xff\xfe"]
    return draw.choice(starts) + draw.randbytes(draw.randrange(400))


def any_value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(4 if depth < 4 else 2)
    if kind < 2:
        return draw.choice(ODD)
    items = range(draw.randrange(4))
    if kind == 2:
        return [any_value(draw, depth + 1) for _ in items]
    return {draw.choice(WORDS): any_value(draw, depth + 1) for _ in items}


def any_json(draw: random.Random) -> bytes:
    return json.dumps(any_value(draw)).encode()


def any_rows(draw: random.Random) -> bytes:
    return b"\n".join(any_json(draw) for _ in range(draw.randrange(9)))


def any_table(draw: random.Random) -> bytes:
    pieces = ["a", "b", ",", ";", "\t", "\n", "\r\n", '"', "'", "|", " ", "é", "1", "\0", "total", "\r", '""']
    return "".join(draw.choice(pieces) for _ in range(draw.randrange(300))).encode(draw.choice(["utf-8", "utf-16"]))


def any_template(draw: random.Random) -> bytes:
    pieces = [
        "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role }}", "{% if m %}", "{% endif %}",
        "x",
        "{{ eos_token }}", "{% set n = namespace(x='a') %}", "{% set n.x = n.x ~ n.x %}", "{% for i in range(99999) %}",
        "{{ tools | tojson }}", "{{ messages[1].content }}", "{{ raise_exception('no') }}", "{{ 'a' * 99999999 }}",
    ]  # fmt: skip
    return "".join(draw.choice(pieces) for _ in range(draw.randrange(12))).encode()


def any_yaml(draw: random.Random) -> bytes:
    pieces = [
        "a: ",
        "- ",
        "&x ",
        "*x",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        "base: ",
        "lora:\n  rank: ",
        "1",
        "<<: ",
        "!!int ",
    ]
    return "".join(draw.choice(pieces) for _ in range(draw.randrange(40))).encode()


def _data(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        path = folder if name == "README.md" else folder / name
        found = check(DataSettings(path=path))
        assert found.rows_in == found.rows_kept + found.rows_reported, "rows are lost"
        json.dumps(found.json())

    return read


def _base(folder: Path) -> None:
    _answer(folder)


def _gguf(folder: Path) -> None:
    _answer(folder / "model.gguf")


def _answer(path: Path) -> None:
    """What loads also reads a text, and writes some tokens."""
    base = load_base(str(path), precision="fp32", device="cpu")
    if not base.task.continues_text:
        return
    sequences = cast(Writer, base.model).start(1, 8)
    sequences.add([base.tokenizer.encode("a b c")[:4] or [0]], [None])
    _, logits = sequences.read(4)
    for _ in range(2):
        logits = sequences.decode(logits.argmax(-1))


def _tokenizer(folder: Path) -> None:
    tok = from_folder(folder, [])
    assert tok.encode("text") is not None
    assert tok.abilities


def _adapter(folder: Path) -> None:
    load_adapter(tiny_module(), folder)


def _reply(folder: Path) -> None:
    _content((folder / "reply.json").read_bytes(), "http://localhost")


def _yaml(folder: Path) -> None:
    build(RunSettings, read_yaml(folder / "config.yaml"))


def _of_a_search(name: str) -> Callable[[Path], None]:
    return lambda folder: void(OF_A_SEARCH[name][0].read(folder / name))


def _pickled(folder: Path) -> None:
    unpickled(folder / "adapter.pt")


def _card(folder: Path) -> None:
    licence_of(folder)
    made_of(folder)


def _run(folder: Path) -> None:
    found = read_run(folder)
    assert found.damaged is not None


def _write_data(folder: Path) -> None:
    import openpyxl
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (folder / "a.json").write_text(json.dumps(ROWS))
    (folder / "a.csv").write_text("question,answer,n\n" + "".join(f"{i} apples,few,{i}\n" for i in range(12)))
    (folder / "a.txt").write_text("one paragraph\n\nanother one\n" * 5)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: c\n  data_files:\n  - split: train\n    path: a.csv\n---\n"
    )
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    pyarrow.feather.write_feather(table, folder / "a.feather", compression="uncompressed")
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(list(map(str, row.values())))
    book.save(folder / "a.xlsx")


def _write_adapter(folder: Path) -> None:
    model, config = tiny_module(), LoraConfig(rank=2, target_modules=("q_proj", "v_proj"), rank_pattern={"q_proj": 3})
    inject(model, config)
    save_adapter(model, config, folder)
    shutil.copy(RECORDED / "adapter" / "afina.json", folder)


def all_kinds(folder: Path) -> list[Kind]:
    """Every kind, with its valid files in a folder below `folder`."""
    base, data, adapter, run, others = (folder / name for name in ("base", "data", "adapter", "run", "others"))
    save_tiny(base)
    _write_data(data)
    _write_adapter(adapter)
    shutil.copytree(RECORDED, run)
    others.mkdir()
    (others / "config.yaml").write_text(SETTINGS)
    (others / "reply.json").write_text(json.dumps({"choices": [{"message": {"role": "assistant", "content": "A"}}]}))
    for name, (_, content) in OF_A_SEARCH.items():
        (others / name).write_text(json.dumps(content))
    torch.save({"q.lora_A": torch.ones(2, 4), "q.lora_B": torch.ones(4, 2)}, others / "adapter.pt")
    (others / "README.md").write_text("---\nlicense: mit\nbase_model: someone/something\n---\n# A model\n")
    sharded = folder / "sharded"
    save_tiny(sharded)
    state = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    save_file(state, sharded / "a.safetensors", {"format": "pt"})
    (sharded / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "a.safetensors")}))
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf" / "model.gguf", "llama")
    return [
        *(Kind(f"base {name}", name, base, _base, any_json) for name in ("config.json", "generation_config.json")),
        Kind("base index", INDEX, sharded, _base, any_json),
        Kind("base card", "README.md", others, _card, lambda draw: b"---\n" + any_yaml(draw) + b"\n---\n"),
        Kind("base weights", "model.safetensors", base, _base, any_bytes),
        *(Kind(name, name, base, _tokenizer, any_json) for name in ("tokenizer.json", "tokenizer_config.json")),
        Kind("template", "chat_template.jinja", base, _tokenizer, any_template),
        Kind("gguf", "model.gguf", folder / "gguf", _gguf, any_bytes),
        Kind("adapter config", "adapter_config.json", adapter, _adapter, any_json),
        Kind("adapter weights", "adapter_model.safetensors", adapter, _adapter, any_bytes),
        Kind("adapter pickled", "adapter.pt", others, _pickled, any_bytes),
        Kind("adapter record", "afina.json", adapter, lambda place: void(read_facts(place)), any_json),
        *(Kind(name, name, data, _data(name), any_rows) for name in ("a.jsonl", "chat.jsonl", "a.json")),
        *(Kind(name, name, data, _data(name), any_table) for name in ("a.csv", "a.txt")),
        *(
            Kind(name, name, data, _data(name), any_bytes)
            for name in ("a.parquet", "a.feather", "a.xlsx", "a.jsonl.gz")
        ),
        Kind("card", "README.md", data, _data("README.md"), lambda draw: b"---\n" + any_yaml(draw) + b"\n---\n"),
        Kind("settings", "config.yaml", others, _yaml, any_yaml),
        Kind("reply", "reply.json", others, _reply, any_json),
        *(Kind(f"run {name}", name, run, _run, any_rows) for name in OF_A_RUN),
        *(Kind(f"search {name}", name, others, _of_a_search(name), any_json) for name in OF_A_SEARCH),
    ]


def void(value: object) -> None:
    """What was read is not looked at."""
