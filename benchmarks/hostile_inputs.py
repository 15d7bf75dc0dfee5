"""The files that `hostile.py` gives to commands: written to a folder, with `cases.json`, which has of each command its
name, its words and the exit codes that are right.

    python benchmarks/hostile_inputs.py FOLDER [FOLDER OF FURTHER FILES]
"""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import torch
from conftest import byte_tokenizer
from gguf_files import write as write_gguf
from transformers import AutoModelForCausalLM, LlamaConfig

Case = tuple[str, list[str], list[int]]
READ, REFUSED, EITHER = [0, 1], [2], [0, 1, 2]  # a check of data ends with 1 where rows cannot be used
MB = 1 << 20
LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
ROWS = "".join(json.dumps({"q": f"{'ab'[i % 2]}{i:02d}", "a": ["red", "blue"][i % 2]}) + "\n" for i in range(40))
ASKED = ["--prompt", "{q}", "--completion", "{a}"]


class Writer:
    """Writes files to `folder` and collects the commands that read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = []

    def add(self, name: str, words: list[str], codes: list[int]) -> None:
        self.cases.append((name, words, codes))

    def data(self, name: str, content: bytes | str, codes: list[int], *more: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.add(f"data {name}", ["data", "check", name, *more], codes)

    def base(self, name: str, change: Callable[[Path], None], codes: list[int], *commands: str) -> None:
        """A base with a change, through `train` or the commands named."""
        folder = self.folder / "bases" / name
        shutil.copytree(self.folder / "base", folder)
        change(folder)
        where = f"bases/{name}"
        for command in commands or ("train",):
            words = {
                "train": ["train", "rows.jsonl", "--base", where, *ASKED, "--out", f"runs/{name}", "--epochs", "1"],
                "fit": ["fit", where, "rows.jsonl", *ASKED],
                "doctor": ["doctor", where],
                "check": ["data", "check", "rows.jsonl", "--base", where, *ASKED],
                "show": ["models", "show", where],
            }[command]
            self.add(f"base {name} ({command})", words, codes)

    def gguf(self, name: str, content: bytes, codes: list[int], *commands: str) -> None:
        (self.folder / "gguf").mkdir(exist_ok=True)
        path = f"gguf/{name}.gguf"
        (self.folder / path).write_bytes(content)
        for command in commands or ("models show",):
            words = [*command.split(), path]
            if command == "train":
                words = ["train", "rows.jsonl", "--base", path, *ASKED, "--out", f"runs/{name}", "--epochs", "1"]
            self.add(f"gguf {name} ({command})", words, codes)

    def adapter(self, name: str, change: Callable[[Path], None], codes: list[int], *commands: str) -> None:
        folder = self.folder / "adapters" / name
        shutil.copytree(self.folder / "adapter", folder)
        change(folder)
        where = f"adapters/{name}"
        for command in commands or ("generate",):
            words = {
                "generate": ["generate", where, "a red word", "--base", "base", "--force"],
                "eval": ["eval", where, "few.jsonl", "--base", "base", "--force"],
                "merge": ["adapters", "merge", where, "--base", "base", "--force", "--out", f"merged/{name}"],
                "show": ["adapters", "show", where],
                "list": ["adapters", "list", where],
                "fetch": ["generate", where, "a red word"],
            }[command]
            self.add(f"adapter {name} ({command})", words, EITHER if command == "list" else codes)

    def pickled(self, name: str, content: bytes) -> None:
        (self.folder / f"{name}.pt").write_bytes(content)
        words = ["adapters", "convert", f"{name}.pt", "--base", "base", "--alpha", "4", "--out", f"converted/{name}"]
        self.add(f"adapter pickled {name}", words, REFUSED)


def edit(file: str, **values: Any) -> Callable[[Path], None]:
    """Sets values of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        raw = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(raw | values))

    return change


def put(file: str, content: bytes | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def pipe(file: str) -> Callable[[Path], None]:
    """A file that never says anything, and never ends."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return change


def link(file: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return change


def sheet(xml: str, **parts: str) -> bytes:
    """A workbook of one sheet."""
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rels = "http://schemas.openxmlformats.org/package/2006/relationships"
    of = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    content = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{types}"><Default Extension="rels" ContentType="application/vnd.'
        'openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType="application/xml"/><Override '
        f'PartName="/xl/workbook.xml" ContentType="{content}.sheet.main+xml"/><Override PartName="/xl/worksheets/'
        f'sheet1.xml" ContentType="{content}.worksheet+xml"/><Override PartName="/xl/sharedStrings.xml" ContentType="'
        f'{content}.sharedStrings+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{rels}"><Relationship Id="r1" Type="{of}/officeDocument" Target="xl/'
        'workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{of}"><sheets><sheet name="a" sheetId="1" r:id="r1"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{rels}"><Relationship Id="r1" Type="{of}/worksheet" '
        f'Target="worksheets/sheet1.xml"/><Relationship Id="r2" Type="{of}/sharedStrings" Target="sharedStrings.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}">{xml}</worksheet>',
        "xl/sharedStrings.xml": parts.get("strings", f'<sst xmlns="{main}"/>'),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def cells(row: int, *texts: str) -> str:
    inner = "".join(f'<c r="{"ABC"[i]}{row}" t="inlineStr"><is><t>{t}</t></is></c>' for i, t in enumerate(texts))
    return f'<row r="{row}">{inner}</row>'


def arrow_file(table: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return out.getvalue()


def parquet_file(table: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, **options)
    return out.getvalue()


def add_tables(w: Writer) -> None:
    for name, header in (
        ("equal", "a," * 16_383 + "a"),
        ("empty", "," * 16_383),
        ("numbered", "a,a_2," * 8191 + "a,a_2"),
        ("long", ("n" * 400 + ",") * 16_383 + "b"),
        ("numbers", ",".join(f"c{i:05d}" for i in range(16_384))),
    ):
        body = "".join(",".join([str(i)] * 16_384) + "\n" for i in range(20))
        w.data(f"headers_{name}.csv", f"{header}\n{body}", READ)
    w.data("headers_equal.tsv", "\t".join(["a"] * 9000) + "\n" + "\t".join(["1"] * 9000) + "\n", READ)
    w.data("headers_too_many.csv", ",".join(["a"] * 40_000) + "\n", REFUSED)
    w.data("quote.csv", 'q,a\n1,"' + "text and text\n" * (2 * MB), REFUSED)
    w.data("quotes.csv", "q,a\n" + '"' * (20 * MB), REFUSED)
    w.data("delimiters.csv", "q,a\n" + "," * (20 * MB), REFUSED)
    w.data("blanks.csv", "q,a\n1,2\n" + "\n" * (2 * MB), EITHER)
    w.data("nulls.csv", b"\0" * (20 * MB), EITHER)
    w.data("bytes.csv", bytes(range(256)) * (20 * 4096), REFUSED)
    w.data("line.txt", "word " * (6 * MB), REFUSED)
    w.data("blanks.txt", "\n" * (8 * MB), EITHER)
    w.data("table.html", "<table>" + "<tr>" + "<td>a</td>" * 20 + "</tr>" * 100_000 + "</table>", EITHER)
    w.data("table.htm", "<table><tr><td colspan=999999999 rowspan=999999999>a</td></tr></table>", EITHER)
    sentences = [",".join(f"the row {i} and column {j} say {i * j % 89}" for j in range(1500)) for i in range(60)]
    w.data("headers_texts.csv", ",".join(["a"] * 1500) + "\n" + "\n".join(sentences) + "\n", READ)
    w.data("headers_many_rows.csv", ",".join(["a"] * 16_384) + "\n" + (",".join(["1"] * 16_384) + "\n") * 100, READ)
    for name, change in (("rows", pyarrow.nulls(40_000_000)), ("bits", pyarrow.array([True] * 4_000_000))):
        w.data(f"same_{name}.parquet", parquet_file(pyarrow.table({"q": change})), REFUSED)
        w.data(f"same_{name}.arrow", arrow_file(pyarrow.table({"q": change}), compression="zstd"), REFUSED)
    table = pyarrow.table({"q": [f"row {i}" for i in range(2000)], "a": ["x" * (i % 9) for i in range(2000)]})
    for name, content in (("parquet", parquet_file(table)), ("arrow", arrow_file(table))):
        for part in (0.3, 0.6, 0.95, 0.995):
            at = int(len(content) * part)
            w.data(f"changed_{part}.{name}", content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :], EITHER)
        w.data(f"cut.{name}", content[: len(content) // 2], REFUSED)
    wide = pyarrow.table({f"c{i}": [1, 2] for i in range(16_000)})
    w.data("wide.parquet", parquet_file(wide), EITHER)
    deep: Any = 1
    for _ in range(90):
        deep = {"a": deep}
    w.data("deep.parquet", parquet_file(pyarrow.Table.from_pylist([{"q": deep}] * 10)), EITHER)


def add_json(w: Writer) -> None:
    w.data("item_text.json", json.dumps([{"q": "text " * (5 * MB), "a": "x"}]), REFUSED)
    w.data("item_list.json", json.dumps([{"q": ["one"] * (3 * MB), "a": "x"}]), REFUSED)
    w.data("item_numbers.json", "[" + "1," * (12 * MB) + "1]", REFUSED)
    w.data("items_empty.json", "[" + "{}," * (3 * MB) + "{}]", EITHER)
    w.data("lists_empty.json", "[" + "[]," * (3 * MB) + "[]]", EITHER)
    w.data("members.json", "{" + ",".join(f'"k{i}": {i}' for i in range(900_000)) + "}", EITHER)
    w.data("split.json", json.dumps({"columns": ["q", "a"], "data": [["x", "y"]] * 300_000}), EITHER)
    w.data("orient.json", json.dumps({"q": {str(i): "x" for i in range(400_000)}, "a": {"0": "y"}}), EITHER)
    w.data("line.jsonl", json.dumps({"q": "x" * (24 * MB)}) + "\n", EITHER)
    w.data("lines.jsonl", (json.dumps({"q": "text " * int(1.5 * MB), "a": "x"}) + "\n") * 5, EITHER)
    w.data("nested.jsonl", '{"q": ' + "[" * 200_000 + "\n" + ROWS, EITHER)
    w.data("number.jsonl", '{"q": ' + "9" * (5 * MB) + ', "a": 1e999999999}\n' + ROWS, EITHER)
    w.data("same_member.jsonl", "{" + '"q": 1, ' * 800_000 + '"a": 2}\n', EITHER)
    w.data("members.jsonl", "".join(json.dumps({f"c{i}": 1, "q": "x", "a": "y"}) + "\n" for i in range(60_000)), EITHER)
    w.data("escapes.jsonl", '{"q": "' + "\\u0041" * MB + '", "a": "x"}\n', EITHER)
    w.data("messages.jsonl", json.dumps({"messages": [{"role": "user", "content": "x"}] * 150_000}) + "\n", EITHER)
    roles = [{"role": f"r{i}", "content": "\x1b[2J"} for i in range(20_000)]
    w.data("roles.jsonl", json.dumps({"messages": roles}) + "\n", EITHER)
    tools = {"tools": [{"a" * 30: {"b": [1] * 50}}] * 4000, "messages": [{"role": "user", "content": "x"}]}
    w.data("tools.jsonl", json.dumps(tools) + "\n", EITHER)


def add_packed(w: Writer) -> None:
    for suffix, pack in (("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)):
        for name, piece in (("line", b"x"), ("cell", b'{"q": "' + b"y" * 993), ("rows", b"{}\n")):
            w.data(f"{name}.jsonl.{suffix}", pack(piece * (6 * MB // len(piece))) * 100, REFUSED)
    w.data("in_itself.csv.gz", gzip.compress(gzip.compress(gzip.compress(b"q,a\n1,2\n"))), EITHER)
    two = cells(1, "q", "a") + cells(2, "one", "two")
    w.data("claims.xlsx", sheet(f'<dimension ref="A1:XFD1048576"/><sheetData>{two}</sheetData>'), READ)
    far = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    w.data("far.xlsx", sheet(f"<sheetData>{two}{far}</sheetData>"), READ)
    w.data(
        "merged.xlsx",
        sheet(f"<sheetData>{two}</sheetData><mergeCells><mergeCell ref='A1:XFD1048576'/></mergeCells>"),
        READ,
    )
    empty = "".join(f'<row r="{i}"><c r="XFD{i}"/></row>' for i in range(3, 40_000))
    w.data("styles.xlsx", sheet(f"<sheetData>{two}{empty}</sheetData>"), EITHER)
    many = "".join(cells(i, "x", "y") for i in range(3, 20_000))
    w.data("many.xlsx", sheet(f"<sheetData>{two}{many}</sheetData>"), EITHER)
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]><sst><si><t>&e11;</t></si></sst>'
    w.data(
        "entities.xlsx",
        sheet('<sheetData><row r="1"><c r="A1" t="s"><v>0</v></c></row></sheetData>', strings=bomb),
        EITHER,
    )
    outside = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><sst><si><t>&e;</t></si></sst>'
    w.data(
        "outside.xlsx",
        sheet('<sheetData><row r="1"><c r="A1" t="s"><v>0</v></c></row></sheetData>', strings=outside),
        EITHER,
    )
    long = f"<sst><si><t>{'x' * 40 * MB}</t></si></sst>"
    w.data(
        "string.xlsx",
        sheet('<sheetData><row r="1"><c r="A1" t="s"><v>0</v></c></row></sheetData>', strings=long),
        REFUSED,
    )
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        out = io.BytesIO()
        if name == "a.zip":
            with zipfile.ZipFile(out, "w") as archive:
                archive.writestr("../../escaped.jsonl", ROWS)
                archive.writestr("/tmp/escaped.jsonl", ROWS)
        else:
            with tarfile.open(fileobj=out, mode="w:gz" if name.endswith("gz") else "w") as tar:
                for member, kind in (("../../escaped", tarfile.REGTYPE), ("/etc/escaped", tarfile.SYMTYPE)):
                    info = tarfile.TarInfo(member)
                    info.type, info.linkname = kind, "/etc/passwd"
                    tar.addfile(info)
        w.data(f"archives/{name}", out.getvalue(), REFUSED)


def add_folders(w: Writer) -> None:
    folder = w.folder
    (folder / "pipe").mkdir()
    (folder / "pipe" / "a.jsonl").write_text(ROWS)
    os.mkfifo(folder / "pipe" / "b.jsonl")
    os.mkfifo(folder / "alone.jsonl")
    (folder / "loop").mkdir()
    (folder / "loop" / "a.jsonl").write_text(ROWS)
    (folder / "loop" / "again").symlink_to(".")
    (folder / "loop" / "b.jsonl").symlink_to("b.jsonl")
    (folder / "zero").mkdir()
    (folder / "zero" / "a.jsonl").write_text(ROWS)
    (folder / "zero" / "b.csv").symlink_to("/dev/zero")
    (folder / "crowd").mkdir()
    for i in range(2_000):
        (folder / "crowd" / f"f{i}.jsonl").write_text('{"q": "x", "a": "y"}\n')
    for name in ("pipe", "loop", "zero", "crowd"):
        w.add(f"data folder {name}", ["data", "check", name], EITHER)
    w.add("data alone.jsonl", ["data", "check", "alone.jsonl"], REFUSED)
    w.add("data /dev/zero", ["data", "check", "/dev/zero"], REFUSED)
    for name, card in (
        ("stars", "configs:\n- config_name: c\n  data_files: '" + "**/" * 40 + "*.nothing'\n"),
        ("up", "configs:\n- config_name: c\n  data_files: '../../../../etc/*'\n"),
        (
            "aliases",
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        ),
        ("code", "configs: !!python/object/apply:os.system ['touch escaped']\n"),
        ("splits", "configs:\n" + "- {config_name: c, data_files: [{split: train, path: a.jsonl}]}\n" * 3000),
    ):
        place = folder / f"card_{name}"
        place.mkdir()
        (place / "a.jsonl").write_text(ROWS)
        deep = place
        for _ in range(12):
            deep = deep / "d"
            deep.mkdir()
        (place / "README.md").write_text(f"---\n{card}---\n")
        w.add(f"data card {name}", ["data", "check", place.name], EITHER)
    saved = folder / "saved"
    saved.mkdir()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../../../etc/passwd"}] * 9}))
    (saved / "dataset_info.json").write_text(json.dumps({"features": {"q": {"names": ["x"] * 500_000}}}))
    w.add("data saved", ["data", "check", "saved"], EITHER)


def add_settings(w: Writer) -> None:
    levels = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    for name, text in (
        ("aliases", "a: &a [x,x,x,x,x,x,x,x,x]\n" + levels + "data: {path: rows.jsonl, prompt: *i}\n"),
        ("merges", "a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [*a, *a]}}\n" for i in range(8000))),
        ("code", "base: !!python/object/apply:os.system ['touch escaped']\n"),
        ("deep", "data: " + "[" * 100_000),
        ("number", "seed: " + "9" * 200_000 + "\n"),
        ("sexagesimal", "seed: 1" + ":59" * 60_000 + "\n"),
        ("long", "base: " + "x" * (5 * MB) + "\n"),
        ("keys", "".join(f"k{i}: 1\n" for i in range(15_000))),
        ("itself", "data: &d {path: *d}\n"),
        ("date", "seed: 2024-99-99\nbase: 0001-01-01\n"),
    ):
        (w.folder / f"{name}.yaml").write_text(text)
        w.add(f"settings {name}.yaml", ["train", "rows.jsonl", "--config", f"{name}.yaml", "--out", "runs/s"], REFUSED)


def templates() -> Iterator[tuple[str, str, list[int]]]:
    doubled = (
        "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% set n.y = [n.y, n.y] %}{% endfor %}"
    )
    bodies = {
        "loop": LOOP,
        "output": LOOP.replace("{% endfor %}", "x{% endfor %}", 1),
        "doubled": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "compared": doubled + "{% if n.x == n.y %}x{% endif %}",
        "member": doubled + "{% if n.x in [n.y] %}x{% endif %}",
        "as_json": doubled + "{{ n.x | tojson }}",
        "indent": "{{ messages | tojson(indent=10 ** 10) }}",
        "power": "{{ 7 ** (10 ** 8) }}",
        "power_text": "{{ 7 ** (10 ** 5) }}",
        "zeros": "{{ 'a'.zfill(10 ** 11) }}",
        "replaced": "{% set n = namespace(x='a') %}{% for i in range(9) %}{% set n.x = n.x.replace('a', 'a' * 99) %}"
        "{% endfor %}",
        "include": "{% include '/etc/passwd' %}",
        "extends": "{% extends '/etc/passwd' %}",
        "private": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "globals": "{{ cycler.__init__.__globals__ }}",
        "attr": "{{ messages | attr('__class__') }}",
        "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "strftime": "{{ strftime_now('%Y' * 999999) }}",
        "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "nested": "{% if a %}" * 3000 + "{% endif %}" * 3000,
        "product": "{{ ([[1] * 9999] * 9999) | sum(start=[]) }}",
        "sorted": "{% for a in range(9999) %}{% if range(99999) | list | sort %}{% endif %}{% endfor %}",
        "batch": "{{ range(99999) | batch(10 ** 10, 0) | list }}",
        "wordwrap": "{{ ('a ' * 10 ** 7) | wordwrap(1) }}",
        "urlize": "{{ ('http://a.' * 10 ** 6) | urlize }}",
        "striptags": "{{ ('<!--' * 10 ** 6) | striptags }}",
        "join": "{{ range(99999) | join('a' * 10 ** 6) }}",
        "slice": "{{ ('a' * 10 ** 8)[::-1] * 99 }}",
    }
    for name, body in bodies.items():
        yield name, body, REFUSED if name not in ("format", "product", "attr", "globals") else EITHER


def add_templates(w: Writer) -> None:
    own = byte_tokenizer().chat_template
    for name, body, codes in templates():
        w.base(f"template_{name}", put("chat_template.jinja", body + own), codes, "check")
        (w.folder / f"{name}.jinja").write_text(body + own)
    w.add(
        "template loop (--template)",
        ["data", "check", "rows.jsonl", "--base", "base", "--template", "loop.jinja", *ASKED],
        REFUSED,
    )
    w.base("template_long", put("chat_template.jinja", "x" * (3 * MB)), REFUSED, "check")
    w.base("template_pipe", pipe("chat_template.jinja"), REFUSED, "check")
    w.base("template_zero", link("chat_template.jinja", "/dev/zero"), REFUSED, "check")


def tokenizer(**parts: Any) -> Callable[[Path], None]:
    """The byte tokenizer with other parts."""
    raw = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    model = raw["model"] | parts.pop("model", {})
    return put("tokenizer.json", json.dumps(raw | parts | {"model": model}))


def add_tokenizers(w: Writer) -> None:
    def split(pattern: str) -> dict[str, Any]:
        one = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        rest = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [one, rest]}

    def grow(count: int, text: str = "a") -> dict[str, Any]:
        one = {"type": "Replace", "pattern": {"String": text}, "content": "a" * 10}
        return {"type": "Sequence", "normalizers": [one] * count}

    vocabulary = json.loads(byte_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pad = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    for name, parts, codes in (
        ("pattern", {"pre_tokenizer": split("(a+)+$")}, EITHER),
        ("pattern_2", {"pre_tokenizer": split(r"([a-z ]+)+!")}, EITHER),
        ("pattern_3", {"pre_tokenizer": split(r"(.|\s|[a-z])*!")}, EITHER),
        ("bad_pattern", {"pre_tokenizer": split("(")}, REFUSED),
        ("grows", {"normalizer": grow(9)}, REFUSED),
        ("grows_more", {"normalizer": grow(40)}, REFUSED),
        (
            "grows_empty",
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"Regex": ""}, "content": "aa"}] * 40,
                }
            },
            REFUSED,
        ),
        ("pads", {"padding": pad}, EITHER),
        (
            "cuts",
            {"truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}},
            EITHER,
        ),
        ("charsmap", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAA=="}}, REFUSED),
        ("cyclic", {"model": {"merges": [["a", "b"], ["ab", "a"], ["b", "a"], ["ba", "ab"]]}}, REFUSED),
        (
            "cyclic_2",
            {
                "model": {
                    "vocab": vocabulary | {"ab": 300, "ba": 301, "aba": 302},
                    "merges": [["a", "b"], ["b", "a"], ["ab", "a"], ["a", "ba"], ["a", "b"]],
                }
            },
            EITHER,
        ),
        ("ids", {"model": {"vocab": vocabulary | {"zz": 2**32 - 1}}}, EITHER),
        ("id_beyond", {"model": {"vocab": vocabulary | {"zz": 2**70}}}, REFUSED),
        (
            "huge",
            {
                "model": {
                    "vocab": vocabulary
                    | {
                        f"{a}{b}{c}{d}x": 300 + i
                        for i, (a, b, c, d) in enumerate(
                            (a, b, c, d) for a in letters for b in letters for c in letters for d in letters
                        )
                    }
                }
            },
            EITHER,
        ),
        (
            "pieces",
            {
                "model": {
                    "type": "Unigram",
                    "unk_id": 0,
                    "byte_fallback": False,
                    "vocab": [["<unk>", 0.0]] + [["x" * i, -1.0] for i in range(1, 4000)],
                }
            },
            EITHER,
        ),
        (
            "added",
            {
                "added_tokens": [
                    {
                        "id": 300 + i,
                        "content": f"<t{i}>",
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": True,
                        "special": True,
                    }
                    for i in range(200_000)
                ]
            },
            EITHER,
        ),
    ):
        w.base(f"tokenizer_{name}", tokenizer(**parts), codes, "check")
    w.base(
        "tokenizer_growing_names",
        tokenizer(
            normalizer=grow(40),
            added_tokens=[
                {
                    "id": 300,
                    "content": "a" * 50,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": True,
                    "special": False,
                }
            ],
        ),
        REFUSED,
        "check",
    )
    w.base("tokenizer_pipe", pipe("tokenizer.json"), REFUSED, "check")
    w.base("tokenizer_path", put("tokenizer.json", "/tmp/elsewhere/tokenizer.json"), REFUSED, "check")
    for value in ("x", -5, 10**400, [1], float("nan")):
        w.base(
            f"tokenizer_length_{str(value)[:6]}", edit("tokenizer_config.json", model_max_length=value), EITHER, "check"
        )
    w.base(
        "tokenizer_code",
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", "a.B"]}, tokenizer_class="Elsewhere"),
        EITHER,
        "check",
    )
    w.base("tokenizer_eos", edit("tokenizer_config.json", eos_token="\x1b[2Jnew"), EITHER, "check")


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def add_bases(w: Writer) -> None:
    for name, values in (
        ("layers", {"num_hidden_layers": 100_000}),
        ("layers_huge", {"num_hidden_layers": 10**12}),
        ("layers_negative", {"num_hidden_layers": -4}),
        ("layers_text", {"num_hidden_layers": "4"}),
        ("wide", {"hidden_size": 10**9}),
        ("words", {"vocab_size": 10**12}),
        ("words_negative", {"vocab_size": -1}),
        ("heads", {"num_attention_heads": 0}),
        ("key_heads", {"num_key_value_heads": 3}),
        ("head_odd", {"head_dim": 11}),
        ("eps", {"rms_norm_eps": float("nan")}),
        ("between", {"intermediate_size": 10**10}),
        ("rotary", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 4.0}}),
        (
            "rope_list",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 999999,
                    "long_factor": [1.0],
                    "original_max_position_embeddings": 1,
                }
            },
        ),
        ("rope_none", {"rope_parameters": {"rope_type": "none such"}}),
        ("theta", {"rope_theta": -1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 0}}),
        ("kind", {"model_type": "../../x"}),
        ("kind_list", {"model_type": ["llama"]}),
        ("code", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}),
        ("quantised", {"quantization_config": {"quant_method": "gptq", "bits": 10**9}}),
        ("experts", {"model_type": "mixtral", "num_local_experts": 10**7}),
        ("types", {"layer_types": ["x"] * 10**6}),
        ("nested", {"text_config": {"text_config": {"text_config": {"num_hidden_layers": 10**9}}}}),
        ("bert", {"model_type": "bert", "num_hidden_layers": 100_000}),
        ("mamba", {"model_type": "mamba", "state_size": 10**9, "num_hidden_layers": 900}),
        ("t5", {"model_type": "t5", "num_layers": 900, "d_model": 64}),
        ("window", {"model_type": "gemma3_text", "sliding_window": -5}),
    ):
        w.base(f"config_{name}", edit("config.json", **values), REFUSED, "fit", "train")
    for name, values in (
        ("context", {"max_position_embeddings": 10**15}),
        ("context_zero", {"max_position_embeddings": 0}),
        ("context_negative", {"max_position_embeddings": -7}),
        ("stops", {"eos_token_id": list(range(200_000))}),
        ("stop_negative", {"eos_token_id": -9}),
        ("stop_far", {"eos_token_id": 10**12}),
        ("dtype", {"dtype": "os.system"}),
        ("names", {"id2label": {str(i): "x" for i in range(200_000)}}),
        ("class", {"architectures": ["\x1b[2J" * 999]}),
    ):
        w.base(f"config_{name}", edit("config.json", **values), EITHER, "fit", "check")
    w.base("config_pipe", pipe("config.json"), REFUSED, "fit", "doctor")
    w.base("config_long", put("config.json", '{"a": [' + "1," * (40 * MB) + "1]}"), REFUSED, "fit")
    w.base("config_deep", put("config.json", '{"model_type": "llama", "a": ' + "[" * 10**6), REFUSED, "fit")
    for name, values in (
        ("new", {"max_new_tokens": -5}),
        ("stops", {"eos_token_id": list(range(300_000))}),
        ("hot", {"temperature": "x", "do_sample": 7}),
        ("stop", {"eos_token_id": -1}),
    ):
        w.base(f"generation_{name}", edit("generation_config.json", **values), EITHER, "check")
    w.base("generation_pipe", pipe("generation_config.json"), REFUSED)
    f32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    w.base("generation_deep", put("generation_config.json", "[" * 10**6), REFUSED)
    for name, content in (
        ("overlap", safetensors({"a": f32, "b": f32}, b"\0" * 16)),
        ("length", safetensors({"a": f32}, b"", 1 << 62)),
        ("negative", safetensors({"a": f32 | {"data_offsets": [16, 0]}}, b"\0" * 16)),
        ("overflow", safetensors({"a": f32 | {"shape": [1 << 40, 1 << 40]}}, b"\0" * 16)),
        ("beyond", safetensors({"a": f32 | {"shape": [1 << 28], "data_offsets": [0, 1 << 30]}}, b"\0" * 16)),
        ("many", safetensors({f"t{i}": f32 | {"shape": [0], "data_offsets": [0, 0]} for i in range(300_000)})),
        ("zeros", safetensors({"a": f32 | {"shape": [0] * 100_000, "data_offsets": [0, 0]}})),
        ("header", safetensors(b" " * (99 * MB))),
        ("deep", safetensors(b'{"a":' * 200_000)),
    ):
        w.base(f"weights_{name}", put("model.safetensors", content), REFUSED)
    w.base("weights_pipe", pipe("model.safetensors"), REFUSED, "doctor", "train")
    w.base("weights_zero", link("model.safetensors", "/dev/zero"), REFUSED)
    for name, mapped in (
        ("up", {"a": "../../../../etc/passwd"}),
        ("zero", {"a": "/dev/zero"}),
        ("many", {f"t{i}": f"model-{i}.safetensors" for i in range(100_000)}),
    ):

        def change(folder: Path, mapped: Any = mapped) -> None:
            (folder / "model.safetensors").unlink()
            edit("model.safetensors.index.json", weight_map=mapped)(folder)

        w.base(f"index_{name}", change, REFUSED)


def add_gguf(w: Writer) -> None:
    write_gguf(w.folder / "valid.gguf", "llama")
    valid = (w.folder / "valid.gguf").read_bytes()

    def key(name: str, kind: int, value: bytes) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value

    def head(tensors: int, keys: int, rest: bytes = b"") -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest

    lists = key("a", 9, struct.pack("<IQ", 9, 1) * 50_000)
    for name, content in (
        ("keys", head(0, 1 << 60)),
        ("tensors", head(1 << 60, 0)),
        ("text", head(0, 1, struct.pack("<Q", 1 << 62))),
        ("list", head(0, 1, key("a", 9, struct.pack("<IQ", 8, 1 << 60)))),
        ("deep", head(0, 1, lists)),
        ("empty_lists", head(0, 1, key("a", 9, struct.pack("<IQ", 9, 10**6) + struct.pack("<IQ", 4, 0) * 10**6))),
        ("kind", head(0, 1, key("a", 77, b""))),
        ("version", b"GGUF" + struct.pack("<IQQ", 99, 0, 0)),
        ("align", head(0, 1, key("general.alignment", 4, struct.pack("<I", 0)))),
        ("align_huge", head(0, 1, key("general.alignment", 4, struct.pack("<I", 1 << 31)))),
        ("dims", head(1, 0, struct.pack("<Q", 1) + b"a" + struct.pack("<I", 1 << 31))),
        ("shape", head(1, 0, struct.pack("<Q", 1) + b"a" + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0))),
        ("cut", valid[: len(valid) // 2]),
        ("cut_head", valid[:3000]),
    ):
        w.gguf(name, content, EITHER if name == "cut" else REFUSED)
    for name, (old, new) in {
        "blocks": (2, 100_000),
        "heads": (8, 0),
        "key_heads": (4, 3),
    }.items():
        wanted = {
            "blocks": "llama.block_count",
            "heads": "llama.attention.head_count",
            "key_heads": "llama.attention.head_count_kv",
        }[name]
        before = key(wanted, 4, struct.pack("<I", old))
        assert valid.count(before) == 1, wanted
        w.gguf(name, valid.replace(before, key(wanted, 4, struct.pack("<I", new))), REFUSED, "train")
    for name, field in (
        ("wide", "llama.embedding_length"),
        ("rotary", "llama.rope.dimension_count"),
        ("head", "llama.attention.key_length"),
        ("between", "llama.feed_forward_length"),
    ):
        start = valid.index(field.encode()) + len(field) + 4
        w.gguf(name, valid[:start] + struct.pack("<I", (1 << 31) - 2) + valid[start + 4 :], REFUSED, "train")
    os.mkfifo(w.folder / "gguf" / "pipe.gguf")
    w.add("gguf pipe", ["models", "show", "gguf/pipe.gguf"], REFUSED)


def pickled(state: Any, change: Callable[[bytes], bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, its pickle changed, packed again."""
    saved, out = io.BytesIO(), io.BytesIO()
    torch.save(state, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(out, "w", how) as again:
        for name in archive.namelist():
            content = archive.read(name)
            again.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return out.getvalue()


def add_adapters(w: Writer) -> None:
    config = "adapter_config.json"
    for name, values in (
        ("rank", {"r": 10**12}),
        ("rank_negative", {"r": -3}),
        ("pattern", {"target_modules": r"(([a-z0-9_.]+)+)+!"}),
        ("pattern_2", {"target_modules": r"(.*.*)*x\1"}),
        ("ranks", {"rank_pattern": {r"(([a-z0-9_.]+)+)+!": 4}}),
        ("many", {"target_modules": [f"m{i}" for i in range(200_000)]}),
        ("alpha", {"lora_alpha": float("nan")}),
        ("excluded", {"exclude_modules": r"((.*)*)*!"}),
        ("layers", {"layers_to_transform": list(range(10**6))}),
        ("tokens", {"trainable_token_indices": [10**12]}),
        ("saved", {"modules_to_save": ["x"] * 50_000}),
        ("kind", {"peft_type": "\x1b[2J"}),
        ("init", {"init_lora_weights": {"a": 1}}),
    ):
        w.adapter(f"config_{name}", edit(config, **values), REFUSED, "generate", "merge")
        w.add(f"adapter config_{name} (list)", ["adapters", "list", f"adapters/config_{name}"], EITHER)
    for name, values, codes in (
        ("new", {"max_new_tokens": -5}, REFUSED),
        ("new_huge", {"max_new_tokens": 10**12}, REFUSED),
        ("data", {"data": {"path": "/etc/passwd", "prompt": "{q}", "completion": "{a}"}}, EITHER),
        ("classes", {"classes": ["x"] * 500_000}, EITHER),
        ("kind", {"kind": "\x1b[2J"}, REFUSED),
        ("prompt", {"data": {"prompt": "{q.__class__.__init__.__globals__}", "completion": "{a}"}}, EITHER),
        ("wide", {"data": {"prompt": "{q:>9999999999}", "completion": "{a}"}}, EITHER),
        ("base", {"base": {"name": "../../../etc"}}, EITHER),
        ("deep", {"reasons": [[[[[[[[[["x"]]]]]]]]]]}, EITHER),
    ):
        w.adapter(f"record_{name}", edit("afina.json", **values), codes, "generate", "eval", "show")
    w.adapter("record_nested", put("afina.json", "[" * 10**6), REFUSED, "generate", "show")
    w.adapter("record_pipe", pipe("afina.json"), REFUSED, "generate", "list")
    w.adapter("config_pipe", pipe(config), REFUSED, "generate", "list")
    w.adapter("weights_pipe", pipe("adapter_model.safetensors"), REFUSED, "generate", "merge")
    f32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for name, content in (
        ("overlap", safetensors({"a": f32, "b": f32}, b"\0" * 16)),
        ("cut", b"\0" * 7),
        ("length", safetensors({"a": f32}, b"", 1 << 62)),
        ("header", safetensors(b" " * 90 * MB)),
        ("odd", safetensors({"a": f32}, b"\0" * 16)),
    ):
        w.adapter(f"weights_{name}", put("adapter_model.safetensors", content), REFUSED, "generate", "merge")
    tensor = torch.zeros(4, 4)
    shape, strides = b"K\x04K\x04\x86", b"K\x04K\x01\x86"
    for name, change in (
        ("strides", lambda text: text.replace(strides, b"K\x00K\x00\x86").replace(shape, b"J\0\0\0\x40" * 2 + b"\x86")),
        ("pairs", lambda text: b"\x80\x02}(" + b"K\x01" * (40 * MB) + b"u."),
        ("cut", lambda text: text[:60]),
        ("code", lambda text: b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."),
    ):
        w.pickled(name, pickled({"q.lora_A": tensor, "q.lora_B": tensor}, change))
    w.pickled("unpacked", pickled({"q.lora_A": torch.zeros(1 << 28)}, lambda text: text, zipfile.ZIP_DEFLATED))
    w.pickled("not_packed", b"\x80\x02}q\0." * 1000)
    w.adapter("template", put("chat_template.jinja", LOOP + byte_tokenizer().chat_template), EITHER, "generate")
    w.adapter("base_named", edit(config, base_model_name_or_path="\x1b]0;owned\x07../../x"), EITHER, "fetch")


def add_runs(w: Writer) -> None:
    for name, file, content in (
        ("line", "metrics.jsonl", '{"step": ' + "1" * (20 * MB)),
        ("steps", "metrics.jsonl", '{"step": 1}\n' * (2 * MB)),
        ("nan", "metrics.jsonl", '{"step": NaN, "loss": Infinity}\n' * 999),
        ("deep", "evaluation.json", "[" * 10**6),
        ("text", "evaluation.json", '{"base": "\x1b[2J"}'),
        ("aliases", "config.yaml", "a: &a [*a]\n"),
    ):
        folder = shutil.copytree(
            Path(__file__).parents[1] / "tests" / "recorded" / "finished", w.folder / "old" / f"{name}_{file}"
        )
        (folder / file).write_text(content)
        w.add(f"run {name} {file} (show)", ["runs", "show", f"old/{folder.name}"], EITHER)
        w.add(f"run {name} {file} (doctor)", ["doctor", f"old/{folder.name}"], EITHER)
    w.add("runs (list)", ["runs", "list", "old"], EITHER)


def add_given(w: Writer, given: Path) -> None:
    """The files of another folder: data, settings, bases (`m_`), adapters (`a_`) and GGUF files (`g_`)."""
    for path in sorted(given.iterdir()):
        name, where = path.name, str(path)
        if name.startswith("m_"):
            refused = READ if "good" in name else REFUSED

            def with_own(folder: Path, path: Path = path) -> None:
                for file in ("config.json", "chat_template.jinja"):
                    shutil.copyfile(path / file, folder / file)

            w.base(name, with_own, refused, "check" if "jinja" in name else "train", "fit")
            w.base(f"{name}_doctor", with_own, EITHER, "doctor")
            w.add(f"given {name} (train)", ["train", "rows.jsonl", "--base", where, *ASKED, "--out", "runs/m"], REFUSED)
        elif name.startswith("a_"):
            ask = ["--base", "base", "--force"]
            w.add(f"given {name} (list)", ["adapters", "list", where], READ)
            w.add(f"given {name} (generate)", ["generate", where, "x", *ask], EITHER)
            w.add(f"given {name} (eval)", ["eval", where, "few.jsonl", *ask], EITHER)
            w.add(f"given {name} (merge)", ["adapters", "merge", where, *ask, "--out", f"merged/{name}"], EITHER)
        elif path.suffix == ".gguf":
            w.add(f"given {name} (train)", ["train", "rows.jsonl", "--base", where, *ASKED, "--out", "runs/g"], EITHER)
            w.add(f"given {name} (doctor)", ["doctor", where], EITHER)
            w.add(f"given {name} (fit)", ["fit", where, "rows.jsonl", *ASKED], EITHER)
        elif path.suffix == ".yaml":
            w.add(f"given {name}", ["train", "--config", where, "--out", "runs/y"], REFUSED)
        else:
            w.add(f"given {name}", ["data", "check", where], READ)


def add_models(w: Writer) -> None:
    """A base with its tokenizer, and an adapter for it."""
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=2,
        )
    )
    model.save_pretrained(w.folder / "base")
    byte_tokenizer().save_pretrained(w.folder / "base")
    (w.folder / "rows.jsonl").write_text(ROWS)
    (w.folder / "few.jsonl").write_text("".join(ROWS.splitlines(keepends=True)[:6]))
    from afina import RunSettings, train

    data = {"path": w.folder / "rows.jsonl", "prompt": "{q}", "completion": "{a}"}
    out = w.folder / "made"
    train(RunSettings(data=data, base=str(w.folder / "base"), out=out, train={"epochs": 1}, lora={"rank": 2}))
    shutil.copytree(out / "adapter", w.folder / "adapter")


def main() -> None:
    w = Writer(Path(sys.argv[1]))
    add_models(w)
    if len(sys.argv) > 2:
        add_given(w, Path(sys.argv[2]))
    for add in (
        add_tables,
        add_json,
        add_packed,
        add_folders,
        add_settings,
        add_templates,
        add_tokenizers,
        add_bases,
        add_gguf,
        add_adapters,
        add_runs,
    ):
        add(w)
    (w.folder / "cases.json").write_text(json.dumps(w.cases))


if __name__ == "__main__":
    main()
