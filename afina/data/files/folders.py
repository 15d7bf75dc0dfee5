"""Sets of files: a folder, or what a pattern matches. Which of the files hold rows, and which part of the data each is:
training, validation, test.

A part has a name of its own, as a data set of the hub has: `FOLDER:train`, or `FOLDER:config:train`. Parts are those
that the data set declares (the hub's card, a saved `DatasetDict`), else those that the names of files and folders say.
"""

import glob
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from afina.core.errors import DataError, InputError, enumerated, near
from afina.core.files import leads_out, read_json
from afina.core.limits.yaml_text import front_matter
from afina.data.files.file import COMPRESSED, suffix_of

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "treino", "treinamento", "entrenamiento", "entrainement"), TRAIN),
    **dict.fromkeys(("entraînement", "addestramento"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "vld", "dev", "devel", "development", "heldout"), VALIDATION),
    **dict.fromkeys(("validação", "validacao", "validación", "validacion", "validierung", "validazione"), VALIDATION),
    **dict.fromkeys(("test", "tests", "testing", "tst", "devtest", "teste", "prueba", "pruebas"), TEST),
    **dict.fromkeys(("eval", "evaluation"), "eval"),  # for validation, or for tests where that is there already
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")
_NO_ROWS = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|changes|contributing|authors|citation|requirements)\b.*\.(txt|md|text)"
    r"|(dataset_infos?|dataset_dict|state|prepared|croissant)\.json|rejected\.jsonl|~\$.*",
    re.IGNORECASE,
)
_NO_DATA = (".md", ".rst", ".py", ".sh", ".yaml", ".yml", ".toml", ".cff", ".bib", ".lock")  # beside _NO_ROWS
_PAPERS = re.compile(r"_.*|(readme|licen[cs]e|copying|notice|authors|makefile|dockerfile)\b.*", re.IGNORECASE)
_ARCHIVES = (".zip", ".tar", ".tgz", ".rar", ".7z")
_CARD_BYTES = 1 << 20
_SHOWN = 3


@dataclass(frozen=True)
class FileSet:
    """The files at `root` that hold rows. `splits` are its parts by their own names, `roles` those names by what they
    are for (`TRAIN`, `VALIDATION`, `TEST`). `others` belong to no part. `features` describe columns, by file."""

    root: Path
    files: list[Path]
    splits: dict[str, list[Path]]
    roles: dict[str, list[str]]
    others: list[Path]
    notes: list[str] = field(default_factory=list)
    features: dict[Path, Any] = field(default_factory=dict)

    def named(self, name: str) -> list[Path]:
        """The files of a part, by its name or by what it is for; of '' those that are trained on, or all where there
        are no parts. Raises `DataError`."""
        if name in self.splits:
            return self.splits[name]
        if name and name not in self.roles:
            known = [*self.splits, *(role for role in self.roles if role not in self.splits)]
            remedy = f"its parts are {', '.join(known)}" if known else "leave the part out"
            raise DataError(f"data {self.root}: no part {name!r}.{near(name, known)}", remedy)
        if not name and TRAIN not in self.roles:
            if len(self.splits) > 1:
                raise DataError(f"data {self.root} has no part to train on", f"name one: {self.listed()}")
            return self.files
        names = self.roles[name or TRAIN]
        if len(names) > 1:
            raise DataError(
                f"data {self.root} has {len(names)} parts for {name or TRAIN}: {', '.join(names)}",
                f"name one, such as {self.root}:{names[0]}",
            )
        return self.splits[names[0]]

    def links(self, files: Collection[Path]) -> list[str]:
        """What is said of those of the `files` that are links out of the set's folder."""
        return [
            f"{file} is a link: {target} is read, which is not in the folder"
            for file in files
            if (target := leads_out(file, _base(self.root)))
        ]

    def listed(self) -> str:
        return ", ".join(f"{self.root}:{name}" for name in self.splits)

    def shown(self, files: Collection[Path]) -> str:
        """The files of a part in a message."""
        return _shown(files, _base(self.root))


def divided(path: Path) -> tuple[Path, str] | None:
    """The set of files that `path` means, and the part of it ('' where none is named); None where it is no set."""
    pieces = str(path).rsplit(":", 2)
    for count in range(len(pieces), 0, -1):
        root = Path(":".join(pieces[:count]))
        if root.is_dir() or (not root.exists() and glob.has_magic(str(root)) and glob.glob(str(root), recursive=True)):
            return root, ":".join(pieces[count:])
    return None


def file_set(path: Path, suffixes: Collection[str]) -> tuple[FileSet, str]:
    """The set of files that `path` means, of those with one of the `suffixes`, and the name of the part that it means
    ('' where it names none). Raises `DataError` where there is no such part, or the set holds no rows."""
    found = divided(path)
    assert found is not None
    root, wanted = found
    listing = _Listing(root, suffixes)
    config, _, split = wanted.rpartition(":")
    if wanted in listing.configs:
        config, split = wanted, ""
    if config and config not in listing.configs:
        known = list(listing.configs)
        raise DataError(
            f"data {root}: no configuration {config!r}.{near(config, known)}",
            f"there are {', '.join(known)}" if known else "give FOLDER, or FOLDER:part",
        )
    return listing.set(config), split


class _Listing:
    """What lies at a root."""

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.suffixes, self.base = root, suffixes, _base(root)
        found = root.rglob("*") if root.is_dir() else map(Path, glob.glob(str(root), recursive=True))
        self.present = sorted(each for each in found if not _hidden(each.relative_to(self.base)) and each.is_file())
        saved = {each.parent: _data_files(each) for each in self.present if each.name == "state.json"}
        self.files = [
            each
            for each in self.present
            if suffix_of(each) in suffixes
            and not _NO_ROWS.fullmatch(each.name)
            and not (each.suffix == ".arrow" and saved.get(each.parent) and each.name not in saved[each.parent])
        ]
        self.notes: list[str] = []
        self._saved_features: dict[Path, Any] = {}

    @cached_property
    def card(self) -> Mapping[str, Any]:
        """The metadata of a data set of the hub, at the head of its README.md."""
        path = self.base / "README.md"
        if not (self.root.is_dir() and path.is_file()):
            return {}
        with path.open("rb") as file:
            text = file.read(_CARD_BYTES).decode("utf-8", "replace")
        try:
            found = front_matter(text)
        except ValueError:
            self.notes.append(f"{path}: its head is not YAML, and is passed over")
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def configs(self) -> dict[str, dict[str, Any]]:
        listed = self.card.get("configs")
        listed = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        return {str(each.get("config_name", "default")): each for each in listed}

    def set(self, name: str) -> FileSet:
        config = self._config(name)
        splits = self._declared(config) if config else self._saved()
        others: list[Path] = []
        if splits:
            roles = _roles({split: _part(split) for split in splits})
            files = list(dict.fromkeys(file for each in splits.values() for file in each))
        else:
            files = self.files
            splits, roles, others = self._by_names()
        if not files:
            raise DataError(self._without_rows(config), f"files of {', '.join(self.suffixes)} are read")
        scripts = [each.name for each in self.present if each.suffix == ".py" and each.parent == self.base]
        if scripts and self.root.is_dir():
            self.notes.append(f"{self.root}: {', '.join(scripts[:_SHOWN])} is not executed; the data files are read")
        features = {file: known for file in files if (known := self._features(file, name)) is not None}
        found = FileSet(self.root, files, splits, roles, others, self.notes, features)
        if unread := [each for each in self.present if self.root.is_dir() and self._is_unread(each)]:
            self.notes.append(f"{self.root}: not read, for their types are not: {found.shown(unread)}")
        return found

    def _is_unread(self, file: Path) -> bool:
        """Whether it may hold data, but not in a format that is read."""
        known = suffix_of(file) in (*self.suffixes, *_NO_DATA) or _NO_ROWS.fullmatch(file.name)
        return not known and not _PAPERS.fullmatch(file.name)

    def _config(self, name: str) -> Mapping[str, Any] | None:
        """The configuration called so; '' means the default one. Raises `DataError` where it must be named."""
        with_files = {key: each for key, each in self.configs.items() if "data_files" in each}
        if name or not with_files:
            return with_files.get(name)
        marked = [each for each in with_files.values() if each.get("default") is True]
        usual = marked[:1] or [with_files[key] for key in ("default",) if key in with_files]
        if usual or len(with_files) == 1:
            return (usual or list(with_files.values()))[0]
        raise DataError(
            f"data {self.root} has {len(with_files)} configurations: {', '.join(with_files)}",
            f"name one, such as {self.root}:{next(iter(with_files))}",
        )

    def _declared(self, config: Mapping[str, Any]) -> dict[str, list[Path]]:
        """The splits of a configuration with their files. Raises `DataError` where none of these is there."""
        base = self.base / str(config.get("data_dir") or "")
        found: dict[str, list[Path]] = {}
        for split, patterns in _patterns(config["data_files"]):
            for pattern in patterns:
                matching = set(_matching(base, pattern))
                files = [file for file in self.files if file in matching]
                if not files:
                    self.notes.append(f"{self.root}: README.md names {pattern}, which is not there as rows")
                found.setdefault(split, []).extend(file for file in files if file not in found.get(split, ()))
        found = {split: files for split, files in found.items() if files}
        if not found:
            raise DataError(f"data {self.root}: {self._without_rows(config)}", "download the data set again")
        return found

    def _saved(self) -> dict[str, list[Path]]:
        """The splits of a `DatasetDict` that was saved to disk."""
        if not (self.root.is_dir() and (self.base / "dataset_dict.json").is_file()):
            return {}
        listed = _json(self.base / "dataset_dict.json").get("splits")
        names = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
        found = {name: [file for file in self.files if file.is_relative_to(self.base / name)] for name in names}
        return {name: files for name, files in found.items() if files}

    def _by_names(self) -> tuple[dict[str, list[Path]], dict[str, list[str]], list[Path]]:
        """Parts by the names of the files and of the folders that they are in."""
        parts = {file: self._part_of(file) for file in self.files}
        roles = _roles({part: part for part in parts.values() if part})
        named = {part: role for role, (part,) in roles.items()}
        splits: dict[str, list[Path]] = {}
        for file, part in parts.items():
            if part in named:
                splits.setdefault(named[part], []).append(file)
        others = [file for file in self.files if parts[file] not in named]
        if list(splits) == [TRAIN] and others and self.root.is_dir():
            what = "is trained on too, for its name says" if len(others) == 1 else "are trained on too: their names say"
            self.notes.append(
                f"{self.root}: {_shown(others, self.base)} {what} no part (validation and test are read as such)"
            )
        if TRAIN not in splits and others:  # data.jsonl beside test.jsonl
            splits = {TRAIN: others, **splits}
            others = []
        if len(splits) < 2 and (others or TRAIN in splits or not self.root.is_dir()):  # nothing is set apart
            return splits, {}, []
        splits = {role: splits[role] for role in (TRAIN, VALIDATION, TEST) if role in splits}
        return splits, {name: [name] for name in splits}, others

    def _part_of(self, file: Path) -> str:
        relative = file.relative_to(self.base)
        stem = relative.name.removesuffix(relative.suffix) if relative.suffix in COMPRESSED else relative.name
        return next((part for name in (Path(stem).stem, *reversed(relative.parts[:-1])) if (part := _part(name))), "")

    def _features(self, file: Path, config: str) -> Any:
        """What a data set says of a file's columns: where it was saved, or in its card."""
        if file.parent not in self._saved_features:
            self._saved_features[file.parent] = _json(file.parent / "dataset_info.json").get("features")
        if self._saved_features[file.parent] is not None:
            return self._saved_features[file.parent]
        listed = self.card.get("dataset_info")
        for each in listed if isinstance(listed, list) else [listed]:
            if isinstance(each, dict) and (not config or each.get("config_name") == config):
                return each.get("features")
        return None

    def _without_rows(self, config: Mapping[str, Any] | None) -> str:
        if config:
            return "none of the files that its README.md names holds rows"
        scripts = [each.name for each in self.present if each.suffix == ".py"]
        archives = [each.name for each in self.present if each.suffix in _ARCHIVES or ".tar." in each.name]
        why = f"; {scripts[0]} is a script, and is not executed" if scripts else ""
        why += f"; {archives[0]} is an archive: unpack it" if archives else ""
        return f"data {self.root} is a folder without files of rows{why}"


def _shown(files: Collection[Path], base: Path) -> str:
    return enumerated([str(file.relative_to(base)) for file in files], _SHOWN)


def _base(root: Path) -> Path:
    """The folder that a root is, or that a pattern begins with."""
    if root.is_dir():
        return root
    at = next((i for i, part in enumerate(root.parts) if glob.has_magic(part)), len(root.parts))
    return Path(*root.parts[:at])


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)


def part_word(text: str) -> str:
    """What a text of one word, such as that in a column, says of a part; '' where it says none."""
    return _WORDS.get(re.sub(r"[\W\d_]+", "", text).lower().removesuffix("set"), "")


def _part(name: str) -> str:
    """The part that a name says, in one of its words: camelCase is two. '' where it says none, or more than one."""
    words = _WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    found = {_WORDS.get(word.lower().removesuffix("set"), "") for word in words} - {""}
    return found.pop() if len(found) == 1 else ""


def _roles(parts: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of each role. What is for evaluation is for validation, or for tests where there is a validation."""
    roles: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part and part != "eval":
            roles.setdefault(part, []).append(name)
    evaluated = [name for name, part in parts.items() if part == "eval"]
    free = next((role for role in (VALIDATION, TEST) if role not in roles), None)
    if evaluated and free:
        roles[free] = evaluated
    return {role: [role] if role in names else names for role, names in roles.items()}


def _patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """The splits that a card's `data_files` name, each with its patterns."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    for each in data_files if isinstance(data_files, list) else [data_files]:
        split, path = (each.get("split", TRAIN), each.get("path")) if isinstance(each, dict) else (TRAIN, each)
        yield str(split), [str(one) for one in (path if isinstance(path, list) else [path]) if one]


def _matching(base: Path, pattern: str) -> Iterator[Path]:
    """Files below `base`: of a pattern, or of the folder that it names."""
    if "://" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        return
    for found in base.glob(re.sub(r"(\*\*/)+", "**/", pattern)):  # each of them goes through all folders again
        yield from found.rglob("*") if found.is_dir() else [found]


def _data_files(state: Path) -> set[str]:
    """The files that a data set was saved in; others beside them are a cache."""
    listed = _json(state).get("_data_files")
    return (
        {str(each.get("filename")) for each in listed if isinstance(each, dict)} if isinstance(listed, list) else set()
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}
