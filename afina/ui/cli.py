"""The command line: parses, calls one public function, prints. Results on standard output, everything else on standard error."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from afina.core.errors import AfinaError, Interrupted, SettingsError, near, writing
from afina.version import __version__

_EPILOG = """\
first run:
  afina train examples.csv --prompt '{question}' --completion '{answer}' --out runs/first
  afina generate runs/first 'a question' --base-too

help on a command: afina COMMAND --help"""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ours: one message, with names that look like the wrong one."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--") and word not in flags]
        hint = "".join(near(word, flags) for word in unknown if message.startswith("unrecognized"))
        raise SettingsError(f"{message}.{hint}", f"`{self.prog} --help` lists what there is")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0 done, 2 usage or input, 1 a run that failed, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        code = _run(arguments)
        with writing("standard output"):
            sys.stdout.flush()
    except AfinaError as error:
        return _fail(error, "--json" in arguments)
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"), "--json" in arguments)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # whoever read us has gone; flush at exit must not fail
        return 0
    return code


def _fail(error: AfinaError, as_json: bool) -> int:
    """Tells the error on standard error, and as an object on standard output too where one is expected there."""
    try:
        if as_json:
            print(json.dumps(error.json(), ensure_ascii=False))
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError):  # a full disk behind standard error must not change the exit code
        print(f"afina: {error}", file=sys.stderr)
    return error.exit_code


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="afina",
        description="Adapt a language model to your task with LoRA, and see whether it got better.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"afina {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in arguments[:1]:
            _command(name).flags(command)
    if not arguments:
        parser.print_help()
        return 0
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    code: int = _command(options.command).run(options)
    return code


def _command(name: str) -> Any:
    return importlib.import_module(f"afina.ui.commands.{name}")


# What each command is for; its file in `commands` is read when it is asked for.
_COMMANDS = {
    "train": "adapt a base model to a file of examples, verify and evaluate it",
    "eval": "score an adapted model and its base on a file of examples; replaces the evaluation in RUN",
    "compare": "LoRA beside prompting, a trained head, the last layers and full fine-tuning, on your data",
    "tune": "search the settings of LoRA on held-out loss, and judge the best once on rows it never saw",
    "generate": "let an adapted model answer",
    "data": "a file of examples: checked, shown as the model sees it, cleaned and split",
    "runs": "runs: listed, shown, compared with each other",
    "adapters": "adapters: listed, shown, compared, combined, cut, merged into their base, converted",
    "models": "base models: the catalogue, facts, downloads",
    "choose": "which base for these data on this machine: candidates, tried on your own rows, ranked",
    "fit": "what adapting a base to some data will need: memory, time, disk, before anything is fetched",
    "doctor": "what is slow or wrong on this machine, or in a run, and what to do",
}

if __name__ == "__main__":
    sys.exit(main())
