"""The parts of a set of files: what is trained on, held out, tested, and scored."""

from pathlib import Path

from afina.core.config import changed
from afina.core.errors import DataError
from afina.data.files.folders import TEST, TRAIN, VALIDATION, divided, file_set
from afina.data.formats import suffixes
from afina.data.mapping import Example, map_examples
from afina.data.read import OpenFiles, read
from afina.data.rows import Notes
from afina.data.settings import DataSettings


def parted(settings: DataSettings) -> DataSettings:
    """The settings, with the parts of the set of files that DATA is each in its place: what is trained on, held out and
    tested, unless other files, `held_out` or `test` say it. Raises `DataError` where there is nothing to train on."""
    if settings.target is not None or divided(settings.path) is None:
        return settings
    found, part = file_set(settings.path, suffixes())
    if part or not found.roles:
        return settings
    places = {TRAIN: "path", VALIDATION: "eval_path", TEST: "test_path"}
    given = {"eval_path"} if settings.holds_out else set[str]()
    given |= {"test_path"} if settings.test_path or settings.test else set()
    if TRAIN not in found.roles:
        raise DataError(f"data {settings.path} has no part to train on", f"name one: {found.listed()}")
    values = {}
    for role, names in found.roles.items():
        if places[role] not in given:
            found.named(role)
            values[places[role]] = Path(f"{settings.path}:{names[0]}")
    return changed(settings, {place: path for place, path in values.items() if _is_scored(settings, place, path)})


def _is_scored(settings: DataSettings, place: str, path: Path) -> bool:
    """Whether a part is trained on, or a model can be scored on it. Raises `DataError` where it cannot be read."""
    if place == "path":
        return True
    references = settings.references if place == "test_path" else None
    asked = changed(settings, {"path": path, "eval_path": None, "test_path": None, "references": references})
    return _is_usable(asked, references is None)


def _is_usable(asked: DataSettings, needs_completion: bool, files: OpenFiles | None = None) -> bool:
    """Whether any row of a part can be used: the tests of a competition often have no answers. Raises `DataError` where
    it cannot be read."""
    try:
        rows = map_examples(asked, Notes(doubts=[]), needs_completion=needs_completion, files=files)
        return any(isinstance(row, Example) for row in rows)
    except DataError:  # its columns do not say what is asked and what is answered, or
        for _ in read(asked, Notes(doubts=[]), files):  # it cannot be read, which is raised again
            pass
        return False


def part_words(settings: DataSettings) -> list[str]:
    """What a set of files is used for, part by part, once the settings are `parted`."""
    used = {"is trained on": settings.path, "is held out": settings.eval_path, "is the test split": settings.test_path}
    lines = [
        f"{path} {use} ({found.shown(found.named(part))})"
        for use, path in used.items()
        if path is not None and divided(path) is not None
        for found, part in (file_set(path, suffixes()),)
        if part
    ]
    own, part = file_set(settings.path, suffixes()) if divided(settings.path) else (None, "")
    if own and part:
        names = {str(path).rsplit(":", 1)[-1] for path in used.values() if path is not None}
        free = {VALIDATION: not settings.holds_out, TEST: not (settings.test_path or settings.test)}
        unanswered = {name for role, is_free in free.items() if is_free for name in own.roles.get(role, ())}
        unused = [f"{own.root}:{name}" for name in own.splits if name not in names | unanswered]
        lines += [f"{', '.join(unused)} not used"] if unused else []
        lines += [f"{own.root}:{name} not used, for no row of it has an answer" for name in sorted(unanswered)]
    return ["; ".join(lines)] if lines else []


def part_to_score(
    settings: DataSettings, needs_completion: bool, files: OpenFiles | None = None
) -> tuple[Path, list[str]]:
    """Of a set of files with parts the one that a model is scored on, and what is said of it: the tests, or where no
    row of these can be used the validation."""
    path = settings.path
    if divided(path) is None:
        return path, []
    found, part = file_set(path, suffixes())
    names = [found.roles[role][0] for role in (TEST, VALIDATION) if role in found.roles]
    if part or not names:
        return path, []
    parts = [Path(f"{path}:{name}") for name in names]
    usable = (each for each in parts if _is_usable(changed(settings, {"path": each}), needs_completion, files))
    chosen = next(usable, parts[0])
    passed = [f"{each} not, for no row of it has an answer" for each in parts[: parts.index(chosen)]]
    return chosen, ["; ".join([f"{path}: {chosen} is read, of its parts", *passed])]
