"""Text in the encodings that people's programs write: told apart by what it looks like, or said to be doubtful."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import write_rows

import afina.data.files.encodings as encodings
from afina.core.config import build
from afina.core.errors import DataError, SettingsError
from afina.data.files import File, known_encoding
from afina.data.files.oddities import oddities
from afina.data.mapping import read_examples
from afina.data.quality.checks import check
from afina.data.quality.signals import damaged, repaired
from afina.data.read import OpenFiles, read
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings
from afina.data.splits import read_splits

SENTENCES = {
    "ja": ["この商品はとても良いです", "配送が遅くて困りました", "電池がすぐに切れてしまう"],
    "zh": ["这个产品的质量非常好", "送货太慢了，我很失望", "电池用了两天就坏了"],
    "zh_hant": ["這個產品的質量非常好", "送貨太慢了，我很失望", "電池用了兩天就壞了"],
    "ko": ["이 제품은 정말 좋습니다", "배송이 너무 늦어서 실망했어요", "배터리가 금방 닳아요"],
    "ru": ["Этот товар очень хороший", "Доставка была слишком долгой", "Батарея быстро садится"],
    "uk": ["Цей товар дуже добрий", "Доставка була надто довгою", "Батарея швидко сідає, їх дві"],
    "pl": ["Ten produkt jest świetny, działa", "Wysyłka trwała zbyt długo", "Bateria szybko się rozładowuje"],
    "cs": ["Tento výrobek je velmi dobrý", "Doručení trvalo příliš dlouho", "Baterie se rychle vybíjí, škoda že"],
    "hu": ["Ez a termék nagyon jó minőségű", "A szállítás túl sokáig tartott", "Az akkumulátor gyorsan lemerül"],
    "pt": ["O produto é muito bom, não há dúvida", "A entrega demorou demais, três semanas", "A bateria já não dura"],
    "fr": ["Ce produit est très bien conçu", "La livraison a été trop longue", "La batterie se décharge déjà"],
    "de": ["Dieses Gerät ist wirklich schön", "Die Lieferung hat für uns gedauert", "Der Akku hält nicht, groß"],
    "es": ["Este producto es muy bueno, señor", "El envío tardó demasiado", "La batería ya no dura según él"],
    "el": ["Αυτό το προϊόν είναι πολύ καλό", "Η παράδοση άργησε πολύ", "Άδειασε γρήγορα η μπαταρία"],
    "tr": ["Bu ürün gerçekten çok güzel", "Teslimat çok uzun sürdü, şaşırdım", "Pil çabuk bitiyor, ışığı da"],
    "he": ["המוצר הזה ממש טוב", "המשלוח לקח יותר מדי זמן", "הסוללה נגמרת מהר"],
    "ar": ["هذا المنتج جيد جدا", "استغرق التسليم وقتا طويلا", "البطارية تنفد بسرعة"],
    "th": ["สินค้านี้ดีมาก", "การจัดส่งช้าเกินไป", "แบตเตอรี่หมดเร็ว"],
}  # fmt: skip
WRITTEN = {
    "ja": ["cp932", "euc_jp", "iso2022_jp"], "zh": ["gbk", "gb18030"], "zh_hant": ["big5"], "ko": ["euc_kr", "cp949"],
    "ru": ["cp1251", "koi8_r", "cp866"], "uk": ["cp1251", "koi8_u"], "pl": ["cp1250", "iso8859_2"],
    "cs": ["cp1250", "iso8859_2"], "hu": ["cp1250", "iso8859_2"], "pt": ["cp1252", "latin_1"],
    "fr": ["cp1252", "mac_roman"], "de": ["cp1252", "latin_1"], "es": ["cp1252"], "el": ["cp1253", "iso8859_7"],
    "tr": ["cp1254"], "he": ["cp1255"], "ar": ["cp1256"], "th": ["tis_620"],
}  # fmt: skip
WIDE = ["utf-16-le", "utf-16-be", "utf-16", "utf-32", "utf-8-sig", "utf-8"]


def texts(path: Path, **settings) -> tuple[list[str], list[Rejected], list[str]]:
    notes = Notes()
    found = list(read(DataSettings(path=path, **settings), notes))
    kept = [row.values["text"] for row in found if isinstance(row, Record)]
    return kept, [row for row in found if isinstance(row, Rejected)], notes.lines


def table(path: Path, sentences: list[str], encoding: str) -> Path:
    lines = [f"{text},{'good' if i % 2 else 'bad'}" for i, text in enumerate(sentences)]
    path.write_bytes("\r\n".join(["text,label", *(line.replace("，", "") for line in lines), ""]).encode(encoding))
    return path


@pytest.mark.parametrize(("language", "encoding"), [(lang, name) for lang in WRITTEN for name in WRITTEN[lang]])
def test_encodings_are_told_apart_by_the_text(language: str, encoding: str, tmp_path: Path) -> None:
    expected = [text.replace("，", "").replace(", ", " ") for text in SENTENCES[language]]
    found, rejected, notes = texts(table(tmp_path / "t.csv", expected, encoding))
    assert (found, rejected) == (expected, [])
    (said,) = [line for line in notes if "is read as" in line]
    assert said.endswith("--data.encoding decides")
    long = expected * 400  # longer than what is looked at
    lines = "".join(json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(long))
    (tmp_path / "t.jsonl").write_bytes(lines.encode(encoding))
    assert texts(tmp_path / "t.jsonl")[0] == long


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("encoding", WIDE)
def test_unicode_in_any_form(language: str, encoding: str, tmp_path: Path) -> None:
    expected = [text.replace("，", "").replace(", ", " ") for text in SENTENCES[language]]
    assert texts(table(tmp_path / "t.csv", expected, encoding))[0] == expected
    (tmp_path / "t.txt").write_bytes("\n".join(expected).encode(encoding))  # nothing in ASCII but line ends
    assert texts(tmp_path / "t.txt", text="line")[0] == expected


def test_the_given_case(shared: Path) -> None:
    found, _, notes = texts(shared.parent / "cases" / "E1_sjis.csv")
    assert found[:2] == ["この商品は壊れていた 0", "この商品はとても良い 1"]
    assert len(found) == 40
    assert any("is read as Shift-JIS (cp932)" in line for line in notes)


def test_few_characters_in_much_english(tmp_path: Path) -> None:
    """Quotes, dashes, pounds and names: the western code page, by far the most frequent."""
    plain = [f"The parcel number {i} came on time and nothing was broken" for i in range(300)]
    for odd in ("It’s “great” – really", "It costs £20", "the café isn’t open yet", "20 °C outside"):
        path = table(tmp_path / "t.csv", [*plain, odd], "cp1252")
        assert texts(path)[0][-1] == odd


def test_ascii_and_utf8_are_never_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a guess")

    monkeypatch.setattr(encodings, "_readings", never)
    for text in ("plain", "olá", "日本語", "\u00c3\u00a9 is how mojibake looks", "emoji 🙂"):
        path = table(tmp_path / "t.csv", [text, "x"], "utf-8")
        assert File(path).encoding.name == ("ascii" if text == "plain" else "utf-8")
        assert texts(path)[0] == [text, "x"]
        assert not texts(path)[2]


def test_what_stays_doubtful_is_not_ready_and_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,label\n" + b"".join(b"na\xefve,%d\n" % (i % 2) for i in range(8)))
    found = check(DataSettings(path=path))
    assert not found.ready
    (finding,) = [each for each in found.findings if each.code == "encoding"]
    assert "'naïve,0'" in finding.text
    assert "'naďve,0'" in finding.text or "'naļve,0'" in finding.text
    assert "--data.encoding" in finding.text
    for reading in (lambda: read_splits(DataSettings(path=path), 0), lambda: texts(path)):
        with pytest.raises(DataError, match=r"its encoding is doubtful.*\n.*--data\.encoding NAME"):
            reading()
    assert check(DataSettings(path=path, encoding="cp1257")).samples[0]["prompt"] == "naļve"
    assert texts(path, encoding="cp1252")[0][0] == "naïve"


def test_a_mixture_of_encodings_is_not_ready(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        json.dumps({"text": text}, ensure_ascii=False).encode("utf-8" if i % 2 else "cp1252") + b"\n"
        for i, text in enumerate(SENTENCES["fr"] * 4)
    ]
    path.write_bytes(b"".join(rows))
    found = check(DataSettings(path=path))
    assert not found.ready
    assert "50% of the text is UTF-8, the rest is not (the first in line 1)" in found.verdict


@pytest.mark.parametrize(("language", "encoding"), [("pt", "utf-8"), ("ja", "cp932"), ("zh", "gb18030")])
def test_rows_with_damaged_bytes_are_rejected_and_the_others_are_read(
    language: str, encoding: str, tmp_path: Path
) -> None:
    lines = [
        json.dumps({"prompt": f"{i} {text}", "completion": "x"}, ensure_ascii=False).encode(encoding)
        for i, text in enumerate(SENTENCES[language] * 300)
    ]
    lines[877] = b'{"prompt": "cut \x82 off", "completion": "x"}'
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, rejected, notes = read_examples(DataSettings(path=path), needs_completion=True)
    assert len(found) == len(lines) - 1
    assert [row.location for row in rejected] == [f"{path}:878"]
    assert any("but for some damaged bytes, the first in line 878" in line for line in notes.lines)


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    text = "".join(f"{text}\n" for text in SENTENCES["ja"] * 30).encode("cp932")
    for end in (len(text) - 2, len(text) // 2, len(text) // 2 + 1):
        (tmp_path / "t.txt").write_bytes(text[:end])
        found, _, notes = texts(tmp_path / "t.txt", text="line")
        assert found[:3] == SENTENCES["ja"]
        assert any("Shift-JIS" in line for line in notes)


def test_the_name_that_is_given_decides(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", SENTENCES["ru"], "cp1251")
    found, _, notes = texts(path, encoding="cp1251")
    assert found == SENTENCES["ru"]
    assert not notes
    assert texts(path, encoding="koi8-r")[0] != SENTENCES["ru"]
    with pytest.raises(DataError, match=r"t\.csv:2: byte 0xdd \(number 13 of the file\) is not utf-8, as --data\.enc"):
        texts(path, encoding="utf-8")
    path.write_bytes(b"text,label\nplain,1\n" + "Доставка,2".encode("cp1251"))
    with pytest.raises(DataError, match=r"t\.csv:3: byte 0xc4 .* is not ascii"):
        texts(path, encoding="ascii")
    utf8 = table(tmp_path / "u.csv", SENTENCES["fr"], "utf-8")
    found, _, notes = texts(utf8, encoding="latin-1")
    assert found[0] == SENTENCES["fr"][0].encode().decode("latin-1")
    assert "is valid UTF-8, and read as latin-1, as --data.encoding says" in notes[0]
    marked = table(tmp_path / "m.csv", ["é"], "utf-8-sig")
    assert texts(marked, encoding="utf-8")[0] == ["é"]
    wide = table(tmp_path / "w.csv", ["é"], "utf-16")
    assert texts(wide, encoding="utf-16-le")[0] == ["é"]


def test_names_that_cannot_be_right(tmp_path: Path) -> None:
    wide = tmp_path / "w.csv"
    wide.write_bytes("text,label\nДоставка,1\nТовар,2\n".encode("utf-16-le"))
    for name in ("utf-8", "cp1251"):
        with pytest.raises(DataError, match=rf"w\.csv is UTF-16-LE, not {name}, as --data\.encoding says"):
            texts(wide, encoding=name)
    plain = table(tmp_path / "p.csv", SENTENCES["ru"], "cp1251")
    with pytest.raises(DataError, match=r"p\.csv:1: byte 0x74 .* is not utf-16"):
        texts(plain, encoding="utf-16")
    quotes = table(tmp_path / "q.csv", ["plain", "it’s “ok”"], "cp1252")
    _, _, notes = texts(quotes, encoding="latin-1")
    assert any("the control character U+0092 in line 3: a Windows code page is likelier" in line for line in notes)
    assert not texts(quotes, encoding="cp1252")[2]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["é"]}), tmp_path / "p.parquet")
    assert texts(tmp_path / "p.parquet", encoding="cp1251") == (
        ["é"], [], [f"{tmp_path / 'p.parquet'} is no text: --data.encoding is not used"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("ｱｲｳ ｶﾒﾗ", "cp932"),
        ("order was late 很慢", "gbk"),
        ("costs €", "iso8859-15"),
        ("ｶﾒﾗ", "cp932"),
        ("Ω", "cp1253"),
    ],
)
def test_little_to_go_by_is_doubtful_or_right_however_often_it_is_said(
    text: str, encoding: str, tmp_path: Path
) -> None:
    for count in (3, 40):
        path = tmp_path / "t.csv"
        path.write_bytes("\n".join(["text,label", *(f"{text} {i},x" for i in range(count))]).encode(encoding))
        found = File(path).encoding
        assert found.doubt or found.name == encoding


def test_surrogates_in_utf8_are_damage(tmp_path: Path) -> None:
    """As Java and Oracle write characters beyond the first plane."""
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,label\ngood,1\nbad \xed\xa0\xbd\xed\xb9\x82,2\n")
    found = File(path).encoding
    assert (found.name, found.doubt) == ("utf-8", "")
    assert "damaged bytes, the first in line 3" in found.said


def test_what_other_parts_are_read_as_is_said_too(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", SENTENCES["ru"], "utf-8")
    table(tmp_path / "test.csv", SENTENCES["uk"], "cp1251")
    said = check(DataSettings(path=tmp_path)).notes
    assert any("test.csv is read as Windows-1251" in line for line in said)
    said = check(DataSettings(path=tmp_path, encoding="cp1251")).notes
    assert any("train.csv is valid UTF-8, and read as cp1251" in line for line in said)


def test_damage_of_other_alphabets_is_seen() -> None:
    for text in ("Доставка", "Παράδοση", "המוצר", "هذا المنتج", "商品はとても", "não"):
        read_wrong = text.encode().decode("latin-1")
        assert damaged(read_wrong)
        assert repaired(read_wrong) == text
    for text in ("Ãgua à €5", "señor, ¿qué?", "Ñandú", "×2 ±0.5", "Ø 5 µm", "façade", "naïve – “so”", "à la « carte »"):
        assert not damaged(text), text


def test_names_of_encodings() -> None:
    for name in ("Shift-JIS", "shift_jis", "latin-1", "UTF-16", "gbk", "cp1251", "utf8"):
        assert known_encoding(name) == name
    for name, near in (("shiftjs", "shiftjis"), ("win1251", "windows_1251"), ("utf9", "utf"), ("hex", ""), ("", "")):
        with pytest.raises(SettingsError, match=rf"--encoding is '{name}': no encoding has that name.*{near}"):
            build(DataSettings, {"path": "x.csv", "encoding": name})


def test_the_guess_is_kept_with_the_settings_and_expected_of_other_files(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", SENTENCES["cs"] * 4, "iso8859_2")
    splits = read_splits(DataSettings(path=path), 0)
    assert splits.resolved().settings.encoding == "iso8859-2"
    assert splits.resolved().settings.asking()["encoding"] == "iso8859-2"
    (tmp_path / "u.csv").write_bytes(b"text,label\nna\xefve,1\n")
    for other, expected in ((table(tmp_path / "v.csv", ["é ě"], "utf-8"), "é ě"), (tmp_path / "u.csv", "naďve")):
        found = list(read(DataSettings(path=other), Notes(), OpenFiles(expected="iso8859-2")))
        assert [row.values["text"] for row in found if isinstance(row, Record)] == [expected]
    plain = write_rows(tmp_path / "p.jsonl", [{"prompt": f"q {i} é", "completion": "x"} for i in range(9)])
    assert read_splits(DataSettings(path=plain), 0).resolved().settings.encoding is None


def test_a_reading_whose_quotations_never_end_is_wrong(tmp_path: Path) -> None:
    """What begins with a capital in Windows' Cyrillic begins with a quotation mark in a Mac's."""
    path = tmp_path / "d.csv"
    path.write_bytes("".join(["text,label\n", *(f"Товар {i} сломан,плохо\n" for i in range(24))]).encode("cp1251"))
    assert texts(path)[0][:2] == ["Товар 0 сломан", "Товар 1 сломан"]
    assert oddities("“овар сломан\n“цена мала") == 2
    assert oddities("“Товар”, сказал он\n“État”, dit-il\n“and he went on") == 0
