"""A run's folder through kills at every moment: no finished run is ever lost."""

import itertools
import multiprocessing
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from afina.core.errors import AdapterError, OutputError
from afina.core.files import write_atomic
from afina.core.process import temporary
from afina.core.process.interrupt import StopRequest, interrupt_on_all_signals
from afina.core.process.temporary import arriving_in
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.runs.facts import adapter_folder
from afina.runs.folder import FORMER, MOVING, RunFolder, check_new, settle

FILES = ("config.yaml", "metrics.jsonl", f"adapter/{CONFIG}", f"adapter/{WEIGHTS}", "evaluation.json", "report.html")


class Killed(BaseException):
    """What no handler of errors sees: the process is gone."""


def write(folder: Path, whose: str, names: tuple[str, ...] = FILES) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(whose)


def whose(folder: Path) -> dict[str, str]:
    """The files of the run that stands in `folder`, and whose they are."""
    return {name: (folder / name).read_text() for name in FILES if (folder / name).exists()}


@contextmanager
def at_changes(act: Callable[[int], None], after: bool = False) -> Iterator[list[str]]:
    """Within the block `act` is called, with how many there were, before each change of the disk, or after it."""
    changes: list[str] = []

    def watched(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def change(*args: object, **kwargs: object) -> object:
            count = len(changes)
            changes.append(name)
            if after:
                done = real(*args, **kwargs)
            act(count)
            return done if after else real(*args, **kwargs)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Path, "rename"), (Path, "mkdir"), (Path, "rmdir"), (Path, "unlink"), (Path, "write_text"),
            (os, "unlink"), (os, "rmdir"),
        ):  # fmt: skip
            patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield changes


@contextmanager
def killed_before(operation: int) -> Iterator[list[str]]:
    """Within the block the process dies before the `operation`-th change of the disk."""

    def die(count: int) -> None:
        if count >= operation:
            raise Killed

    with at_changes(die) as changes:
        yield changes


def overwrite(folder: Path, fails: bool = False, stoppable: bool = False) -> None:
    """A run that replaces another: as far as its adapter, or until it fails without one or is stopped."""
    run = RunFolder(folder)
    try:
        run.start()
        with arriving_in(folder) as place:
            write(place, "new", FILES[:2])
        if fails:
            run.roll_back()
            return
        write(folder, "new", FILES[2:4])
        run.commit()
    except BaseException:
        if stoppable:
            run.roll_back()
        raise
    write(folder, "new", FILES[4:])


def check_whole(folder: Path, operation: object, new: int = len(FILES)) -> None:
    """The former run stands there, whole, or the new one does as far as its first `new` files."""
    found = whose(folder)
    if "new" in found.values():  # it had saved an adapter: it stays, and can be resumed
        assert set(found.values()) == {"new"}, (operation, found)
        assert set(FILES[:new]) <= set(found), (operation, found)
    else:
        assert found == dict.fromkeys(FILES, "old"), operation
        assert not (folder / FORMER).exists()
    assert not (folder / MOVING).exists()
    assert (folder / "notes.txt").exists()


def old_run(folder: Path) -> Path:
    write(folder, "old")
    (folder / "notes.txt").write_text("the user's own")
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_exception_at_any_change_leaves_a_whole_run(tmp_path: Path, error: type[BaseException], after: bool) -> None:
    """At once, without another command that puts it right."""
    for operation in itertools.count():
        folder = old_run(tmp_path / str(operation))

        def fail(count: int, operation: int = operation) -> None:
            if count == operation:
                raise error

        with at_changes(fail, after) as changes, suppress(error, OutputError):
            overwrite(folder, stoppable=True)
        check_whole(folder, (operation, changes), 4)
        if len(changes) <= operation:
            break
    assert operation > 10


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_signal_at_any_change_leaves_a_whole_run(tmp_path: Path, name: str, after: bool) -> None:
    """And so does a second one, while the first is dealt with; seen as the next command sees it."""
    for operation in itertools.count():
        folder = old_run(tmp_path / str(operation))
        child = os.fork()
        if child == 0:
            interrupt_on_all_signals()

            def send(count: int, operation: int = operation) -> None:
                if count in (operation, operation + 2):
                    os.kill(os.getpid(), getattr(signal, name))

            code = 3
            with suppress(KeyboardInterrupt), at_changes(send, after) as changes:
                try:
                    overwrite(folder, stoppable=True)
                finally:
                    code = int(len(changes) > operation)  # whether it was sent
            os._exit(code)
        ended = os.waitpid(child, 0)[1]
        settle(folder)
        check_whole(folder, operation, 4)
        if os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == 0:
            break
        assert os.WIFSIGNALED(ended) == (name == "SIGKILL")
    assert operation > 10


def test_a_resume_that_fails_deletes_nothing(tmp_path: Path) -> None:
    """Not even where there are no checkpoints and no adapter yet; nor does a run that failed before it began."""
    write(tmp_path, "cut off", FILES[:2])
    RunFolder(tmp_path).roll_back()
    assert set(whose(tmp_path)) == set(FILES[:2])
    run = RunFolder(tmp_path)
    run.settle(resuming=True)
    run.settle()
    assert set(whose(tmp_path)) == set(FILES[:2])


def test_a_former_run_that_cannot_be_deleted_is_not_taken_for_one_to_keep(tmp_path: Path) -> None:
    folder = old_run(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise PermissionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporary, "remove", fail)
        overwrite(folder)
        assert not (folder / FORMER).exists()
        settle(folder)
    overwrite(folder, fails=True)
    check_whole(folder, "twice")
    assert set(whose(folder).values()) == {"new"}
    settle(folder)
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize("fails", [False, True], ids=["to its end", "fails early"])
@pytest.mark.parametrize("again", range(0, 12, 3))
def test_a_finished_run_survives_a_kill_at_any_moment(tmp_path: Path, fails: bool, again: int) -> None:
    """And a second kill while what the first left is put right, `again` changes into it."""
    operation, ended = 0, False
    while not ended:
        folder = old_run(tmp_path / str(operation))
        try:
            with killed_before(operation):
                overwrite(folder, fails)
            ended = True
        except Killed:
            pass
        try:
            with killed_before(again):
                RunFolder(folder).settle()
        except Killed:
            pass
        settle(folder)
        check_whole(folder, operation, 4)
        assert not (folder / FORMER).exists()
        assert not (fails and "new" in whose(folder).values())
        operation += 1
    assert operation > 10


def test_a_new_run_that_can_be_resumed_keeps_the_former_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "old")
    RunFolder(tmp_path).start()
    write(tmp_path, "new", ("config.yaml", "checkpoints/step-4"))
    settle(tmp_path)
    assert whose(tmp_path / FORMER) == dict.fromkeys(FILES, "old")
    with pytest.raises(AdapterError, match=r"\.former"):
        adapter_folder(tmp_path)
    assert adapter_folder(tmp_path / FORMER).exists()
    with pytest.raises(OutputError, match="cut off; the run that it was to replace is in"):
        RunFolder(tmp_path).check(overwrite=False)
    overwrite(tmp_path, fails=True)
    assert whose(tmp_path) == dict.fromkeys(FILES, "old")


def test_what_a_folder_without_an_adapter_is(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="contains no adapter"):
        adapter_folder(tmp_path)
    write(tmp_path, "killed", ("config.yaml",))
    with pytest.raises(AdapterError, match=r"cut off before .* saved\n.*resume it with `afina train --resume"):
        adapter_folder(tmp_path)
    write(tmp_path, "moved", ("evaluation.json",))
    with pytest.raises(AdapterError, match="contains no adapter"):
        adapter_folder(tmp_path)


def test_a_new_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "new", Path("/proc/new")):
        with pytest.raises(OutputError, match=rf"cannot write into --out {out}: [^\n]+\n.*choose another --out$"):
            check_new(out)
    check_new(tmp_path / "new" / "er")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resuming_keeps_settings_without_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, "old")
    RunFolder(tmp_path).start()
    write(tmp_path, "new", ("config.yaml",))
    RunFolder(tmp_path).settle(resuming=True)
    assert whose(tmp_path) == {"config.yaml": "new"}
    RunFolder(tmp_path).settle()
    assert whose(tmp_path) == dict.fromkeys(FILES, "old")


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    folder = tmp_path / "run"
    write(folder, "old", FILES[:1])
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    overwrite(folder)
    assert (tmp_path / "elsewhere" / "kept").exists()
    assert not (folder / "checkpoints").exists()


def hold(folder: Path, ready, go) -> None:
    with RunFolder(folder).locked():
        ready.set()
        go.wait(30)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "above" / "run"
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, ready, go))
    other.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match="another process"), RunFolder(folder).locked():
        pass
    assert folder.exists()
    go.set()
    other.join(30)
    assert not folder.parent.exists()
    with RunFolder(folder).locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_folder_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the folder and locking it, the process that held it may have removed it."""
    fcntl = pytest.importorskip("fcntl")
    real, calls, folder = fcntl.flock, [], tmp_path / "run"

    def flock(handle, how) -> None:
        if not calls:
            folder.rmdir()
        calls.append(how)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    other = RunFolder(folder).locked(patient=False)
    with RunFolder(folder).locked(), pytest.raises(OutputError, match="another process"), other:
        pass
    assert len(calls) == 3


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(file, how) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder(tmp_path / "run").locked():
        assert (tmp_path / "run").is_dir()


def test_files_have_the_rights_that_the_user_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "one", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o640


def test_temporary_files_of_a_kill_are_swept(tmp_path: Path) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            write_atomic(tmp_path / "deep" / "one", "text")
    (tmp_path / ".hidden").touch()
    assert len(list((tmp_path / "deep").iterdir())) == 1
    settle(tmp_path)
    assert list((tmp_path / "deep").iterdir()) == []
    assert (tmp_path / ".hidden").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_are_ctrl_c(name: str) -> None:
    which = getattr(signal, name)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(which, signal.SIG_DFL)
        interrupt_on_all_signals()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(which)
        stop = StopRequest()
        with stop.listening():
            signal.raise_signal(which)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(which)
        signal.signal(which, signal.SIG_IGN)  # nohup
        interrupt_on_all_signals()
        with StopRequest().listening():
            signal.raise_signal(which)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with pytest.raises(OutputError, match="not from a run"):
        RunFolder(tmp_path).check(overwrite=True)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    for out in (tmp_path / "other", tmp_path / "other" / "deep"):
        with pytest.raises(OutputError, match="is a file"), RunFolder(out).locked():
            pass
