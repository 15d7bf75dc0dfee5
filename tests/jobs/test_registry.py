"""The registry of jobs: schemas, settings that round-trip, flags that reach their fields, a job from outside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import afina
from afina.core.config import FieldInfo, Result, Settings, build, fields, json_object, nest, setting
from afina.core.errors import SettingsError
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.jobs import JOBS
from afina.ui.cli import Parser, _command, main

WORDS = sorted({name.split()[0] for name in JOBS.names()})


def value_of(job: Job, info: FieldInfo) -> tuple[str, Any]:
    """A word for the command line that suits a setting, and what the setting then is."""
    model: Any = job.settings
    *sections, name = info.path.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    field = model.model_fields[name]
    accepts = TypeAdapter(field.annotation if not field.metadata else field.rebuild_annotation())
    for word in (*info.choices, "7", "0.5", "word", "8", "lora", "url:name", "true", "false", "{a: 7}", "utf-8", "4MB"):
        value: Any = word
        if info.many and info.positional:
            value = (word, word)
        elif info.repeated:
            value = (word,)
        elif not info.text:
            value = {"7": 7, "8": 8, "0.5": 0.5, "true": True, "false": False, "{a: 7}": {"a": 7}}.get(word, word)
        if value == info.default:
            continue
        try:
            return word, accepts.validate_python(value)
        except ValueError:
            continue
    raise AssertionError(f"{job.name} {info.path}: no word suits it")


def test_names_and_help_are_read_without_torch() -> None:
    code = (
        "import sys; from afina.jobs import JOBS; [JOBS.help(name) for name in JOBS.names()]; "
        "print({'torch', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for listed in JOBS:
        job = listed.load()
        assert (job.name, job.help) == (listed.name, listed.help)
        assert job.function.__name__ == job.function.__module__.rpartition(".")[2]
    assert all(JOBS.help(word) for word in WORDS)


@pytest.mark.parametrize("name", JOBS.names())
def test_schemas_are_json(name: str) -> None:
    job = JOBS[name].load()
    schema = json.loads(json.dumps(job.schema()))
    assert schema["settings"]["properties"].keys() == job.settings.model_fields.keys()
    assert schema["result"]
    for field in schema["settings"]["properties"].values():
        assert "$ref" in field or field["description"], name


@pytest.mark.parametrize("name", JOBS.names())
def test_each_flag_reaches_its_field_and_settings_round_trip(name: str) -> None:
    """Flags one at a time, as some exclude each other; what a job needs is always given."""
    job = JOBS[name].load()
    command, _ = _command(name.split()[0])
    every = list(fields(job.settings))
    also = {("generate", "prompts"), ("generate --url", "prompts"), ("serve", "base")}
    needed = [info for info in every if info.required or (name, info.path) in also]
    words, values = [], {}
    for info in needed:
        word, values[info.path] = value_of(job, info)
        words += [word] * (2 if info.many else 1) if info.positional else [info.flags[-1], word]
    action = [name.split()[1]] if command.actions else []
    parser = Parser(prog="afina")
    command.declare(parser, [])
    partners = {
        "judge": {"judge_model": "m"}, "judge_model": {"judge": "m"}, "delete": {"name": "n"},
        "run.force": {"run.adapter": "a"}, "force": {"adapter": "a"} if name == "train" else {},
        "run.last_layers": {"run.method": "last"}, "last_layers": {"method": "last"},
        "lora.eva_rho": {"lora.init": "eva"}, "run.lora.eva_rho": {"run.lora.init": "eva"},
        "lora.layers_pattern": {"lora.layers": "0"}, "run.lora.layers_pattern": {"run.lora.layers": "0"},
    }  # fmt: skip
    without = {("generate", "data"), ("compare", "run.last_layers")}  # excluded by a prompt, and by the method
    for info in every:
        if not info.flags or info in needed or (name, info.path) in without or len(info.choices) == 1:
            continue
        word, value = value_of(job, info)
        given = {info.path: True if info.switch else value, **partners.get(info.path, {})}
        typed = [*action, *words]
        for path, each in given.items():
            own = next(other for other in every if other.path == path)
            word = word if path == info.path else str(each)
            typed += [word] if own.positional else [own.flags[0]] if own.switch else [own.flags[0], word]
        try:
            expected = build(job.settings, nest(values | given))
        except SettingsError as error:
            pytest.fail(f"{info.path}: {error}")
        options, unknown = parser.parse_known_args(typed)
        assert not command.take(options, unknown)
        found, settings = command.read(options)
        assert (found.name, settings) == (name, expected), info.path
        assert settings != build(job.settings, nest(values)), info.path
        assert job.settings.model_validate(settings.model_dump()) == settings
        assert job.settings.model_validate_json(settings.model_dump_json()) == settings


class GreetSettings(Settings):
    name: str = setting(..., positional="NAME")
    """Who is greeted."""
    times: int = setting(1, metavar="N", ge=1)
    """How often."""


class GreetResult(Result):
    words: tuple[str, ...]


def greet(settings: GreetSettings, listener: Listener = ignore) -> GreetResult:
    listener(Notice("greeting"))
    return GreetResult(words=(f"hello {settings.name}",) * settings.times)


def test_a_job_from_outside_runs_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    job = Job("greet", "say hello", GreetSettings, GreetResult, greet)
    with JOBS.added(job):
        assert main(["greet", "you", "--times", "2"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {"words": ["hello you", "hello you"]}
        assert "greeting" in captured.err
        assert main(["greet", "you", "--times", "0", "--json"]) == 2
        assert "--times is 0" in json.loads(capsys.readouterr().out)["error"]["problems"][0]
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "greet     say hello" in capsys.readouterr().out
        with pytest.raises(SettingsError, match="already"):
            JOBS.add(job)
    assert main(["greet", "you"]) == 2
    assert "invalid choice: 'greet'" in capsys.readouterr().err


def test_help_lines_are_at_most_120_columns(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for columns in ("300", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        for words in [[], *([word] for word in WORDS), *(n.split() for n in JOBS.names() if "--" not in n)]:
            with pytest.raises(SystemExit):
                main([*words, "--help"])
            assert all(len(line) <= 120 for line in capsys.readouterr().out.splitlines()), words


def test_a_flag_of_another_action_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--delete"]) == 2
    assert "`afina models cache`" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "rows.jsonl"]) == 2
    assert "afina train --resume does not read DATA" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 2
    assert "afina train --resume does not read --epochs" in capsys.readouterr().err


def test_the_library_takes_the_same_settings(tmp_path: Path) -> None:
    settings = afina.CompareSettings(run=afina.RunSettings(data=afina.DataSettings(path=tmp_path)), methods=["lora"])
    assert settings.methods == ("lora",)
    assert afina.CompareSettings(run=settings.run, methods="base, lora").methods == ("base", "lora")
    result = GreetResult(words=("a",))
    assert json_object(result) == {"words": ["a"]}


def test_positionals_may_follow_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "absent.jsonl"
    assert main(["data", "prepare", "--out", str(tmp_path / "out"), str(data)]) == 2
    assert f"{data}: no such file" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), "--limit", "3", str(data)]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), "--limit", "3", str(data), "more"]) == 2
    assert "unrecognized arguments: more" in capsys.readouterr().err
