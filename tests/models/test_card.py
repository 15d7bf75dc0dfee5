"""What a model card's head says, whatever is in it."""

from pathlib import Path

import pytest

from afina.models.formats.card import licence_of, made_of

ALIASES = "a: &a [1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("head", "licence", "base"),
    [
        ("license: mit\nbase_model: owner/model-1.5", "mit", "owner/model-1.5"),
        ("license: apache-2.0\nbase_model:\n- a/b\n- c/d", "apache-2.0", "a/b"),
        ("license:\n- mit\nbase_model: model", None, None),
        ("license: 3\nbase_model: ../../etc", None, None),
        ("license: " + "x" * 101 + "\nbase_model: []", None, None),
        (ALIASES + "license: *i\nbase_model: *i", None, None),
        ("license: mit\nlicense: [", None, None),
        ("license: !!python/object/apply:os.system ['true']", None, None),
        ("license: " + "[" * 5_000, None, None),
        ("license: |\n" + "  x\n" * 100_000, None, None),
        ("base_model:" + "\n" * 100_000 + "x", None, None),
        ("- license", None, None),
        ("\n" * 300_000, None, None),
    ],
)
def test_the_head_is_read_within_limits(head: str, licence: str | None, base: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n\nlicense: other\n")
    assert (licence_of(tmp_path), made_of(tmp_path)) == (licence, base)


@pytest.mark.parametrize(
    "content", [b"", b"# A model\n---\nlicense: mit\n---\n", b"---\nlicense: \xff\n---\n", b"---" + b"\n" * 300_000]
)
def test_cards_without_a_head_that_can_be_read_say_nothing(content: bytes, tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_bytes(content)
    assert licence_of(tmp_path) is None
