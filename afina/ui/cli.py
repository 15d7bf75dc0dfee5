"""The command line: parses, calls one public function, prints. Results on standard output, everything else on standard error."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from afina.core.errors import AfinaError, OutputError, SettingsError, near, writing
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
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # whoever read us has gone; flush at exit must not fail
        return 0
    return code


def _fail(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError):  # a full disk behind standard error must not change the exit code
        print(f"afina: {message}", file=sys.stderr)
    return code


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
    for name, (summary, fill, _) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in arguments[:1]:
            fill(command)
    if not arguments:
        parser.print_help()
        return 0
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return _COMMANDS[options.command][2](options)


def _train_flags(parser: argparse.ArgumentParser) -> None:
    from afina.core.config import fields
    from afina.jobs.settings import RunSettings

    parser.usage = "afina train DATA [--prompt TEXT] [--completion TEXT] [--base BASE] [--out DIR] [flags]"
    parser.add_argument("data", nargs="?", metavar="DATA", help="file of examples (.jsonl, .json, .csv)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was killed or interrupted")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; flags override it")
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for field in fields(RunSettings):
        if field.path == "data.path":
            continue
        section = field.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        default = "" if field.default in (None, (), {}) or field.switch else f" [{field.default}]"
        if field.choices:
            default = f" One of {', '.join(field.choices)}.{default}"
        options: dict[str, Any] = {
            "dest": field.path,
            "default": argparse.SUPPRESS,
            "help": f"{field.help}{default}".replace("%", "%%"),
        }
        if field.switch:
            options["action"] = "store_true"
        else:
            options["metavar"] = field.path.rpartition(".")[2].upper()
        groups[section].add_argument(*reversed(field.flags), **options)


def _train(options: argparse.Namespace) -> int:
    import yaml

    from afina.core.config import build, fields, merge, nest, read_yaml
    from afina.jobs.settings import RunSettings

    given = vars(options)
    values: dict[str, Any] = {}
    for field in fields(RunSettings):
        if field.path in given:
            value = given[field.path]
            if isinstance(value, str) and not field.text:
                with suppress(yaml.YAMLError):  # the settings then say what is wrong with the text
                    value = yaml.safe_load(value)
            values[field.path] = value
    if options.data is not None:
        values["data.path"] = options.data
    from afina.jobs.train import resume, train
    from afina.measure.report import try_command
    from afina.ui.display import Display, show_result

    if options.resume:
        if values or options.config:
            raise SettingsError(
                f"--resume {options.resume} repeats the recorded settings and takes no others",
                "give --resume RUN alone",
            )
        with Display() as display:
            result = resume(options.resume, display)
    else:
        tree = merge(read_yaml(options.config) if options.config else {}, nest(values))
        if not isinstance(tree.get("data"), dict) or "path" not in tree["data"]:
            raise SettingsError("no DATA was given", "afina train DATA: a file of examples (.jsonl, .json or .csv)")
        settings = build(RunSettings, tree)
        with Display() as display:
            result = train(settings, display)
    with writing("standard output"):
        show_result(result.evaluation.json(), {"adapter": result.adapter, "report": result.report})
        print(f"\nTry it:  {try_command(result.folder, result.prompt)}")
    return 0


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `afina train` wrote, or an adapter's folder")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, mps; by default the best that is there")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloaded models are kept")
    parser.add_argument("--base", metavar="BASE", help="the base, where it is not where it was in training")
    parser.add_argument("--force", action="store_true", help="take a base that the adapter was not made for")


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    _run_flags(parser)
    parser.add_argument("data", type=Path, metavar="DATA", help="file of examples that were not trained on")
    parser.add_argument("--references", metavar="COLUMN", help="column with the right answer, or a list of them")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _eval(options: argparse.Namespace) -> int:
    from afina.jobs.evaluate import evaluate
    from afina.jobs.runs import adapter_folder
    from afina.ui.display import Display, show_result

    with Display() as display:
        result = evaluate(
            options.run,
            options.data,
            references=options.references,
            limit=options.limit,
            listener=display,
            device=options.device,
            cache_dir=options.cache_dir,
            base=options.base,
            force=options.force,
        )
    if options.json:
        _print(json.dumps(result.json(), ensure_ascii=False))
    else:
        files = {"adapter": adapter_folder(options.run), "report": options.run / "report.html"}
        with writing("standard output"):
            show_result(result.json(), {name: path for name, path in files.items() if path.exists()})
    return 0


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    _run_flags(parser)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the user's turn, word for word")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="answer every row of a file, through the run's prompt template"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the answers as JSONL instead of printing them")
    parser.add_argument("--overwrite", action="store_true", help="replace the file given with --out")
    parser.add_argument("--base-too", action="store_true", help="the base's answer beside the adapted model's")


def _generate(options: argparse.Namespace) -> int:
    if (options.prompt is None) == (options.data is None):
        raise SettingsError("afina generate takes either PROMPT or --data FILE", "give one of them")
    if options.prompt is not None and not options.prompt.strip():
        raise SettingsError("PROMPT is empty", "give a question")
    from afina.core.files import check_writable, write_jsonl

    if options.out:
        check_writable(options.out)
        if options.data and options.out.exists() and options.data.exists() and options.out.samefile(options.data):
            raise OutputError(f"--out {options.out} is the file of --data itself", "choose another --out")
        if options.out.is_file() and not options.overwrite:
            raise OutputError(
                f"--out {options.out} exists already", "choose another --out, or replace it with --overwrite"
            )
    from afina.jobs.generate import generate
    from afina.ui.display import Display

    with Display() as display:
        rows = generate(
            options.run,
            options.data or [options.prompt],
            base_too=options.base_too,
            listener=display,
            device=options.device,
            cache_dir=options.cache_dir,
            base=options.base,
            force=options.force,
        )
    if options.out:
        write_jsonl(options.out, rows)
        print(f"{len(rows)} answers in {options.out}", file=sys.stderr)
    elif options.data:
        for row in rows:
            _print(json.dumps(row, ensure_ascii=False))
    elif options.base_too:
        _print(f"base:    {rows[0]['base']}\nadapted: {rows[0]['answer']}")
    else:
        _print(rows[0]["answer"])
    return 0


def _models_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=["list", "show", "pull"], help="the catalogue, the facts of a model, or a download"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="catalogue name, hub id, folder or .gguf file")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloaded models are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _models(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from afina.base.catalogue import CATALOGUE

    if options.action == "list":
        if options.name:
            raise SettingsError(
                f"afina models list takes no name, {options.name!r} was given", "afina models show NAME"
            )
        if options.json:
            _print(json.dumps({name: asdict(entry) for name, entry in CATALOGUE.items()}))
            return 0
        for entry in CATALOGUE.values():
            _print(
                f"{entry.name:10} {entry.title}: {entry.parameters / 1e6:.0f} M parameters, {entry.size_mb} MB, {entry.licence}"
            )
        return 0
    if not options.name:
        raise SettingsError(f"afina models {options.action} needs a NAME", "`afina models list` shows the catalogue")
    if options.action == "show" and options.name in CATALOGUE and not options.revision:
        card: dict[str, Any] = asdict(CATALOGUE[options.name])
    else:
        from afina.base.load import describe

        card = describe(options.name, revision=options.revision, cache_dir=options.cache_dir).card()
    if options.json:
        _print(json.dumps(card))
        return 0
    for key, value in card.items():
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, tuple) else value
            _print(f"{key.replace('_', ' '):15} {shown}")
    return 0


def _adapters_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=["list", "show", "diff", "combine", "rerank", "merge", "convert"],
        help="what lies in a folder; one adapter; two compared; a weighted sum; a lower rank; folded into the base; "
        "from a file of mlx-lm, LitGPT or loralib",
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run or adapter folders (list: where to look)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (combine, rerank, merge, convert)")
    parser.add_argument("--weights", metavar="W,W", help="combine: a weight for each adapter [1 each]")
    parser.add_argument(
        "--kind",
        default="svd",
        metavar="KIND",
        help="combine: linear, cat, svd, ties, dare_linear, dare_ties, the last three also with _svd [svd]",
    )
    parser.add_argument("--rank", type=_positive, metavar="N", help="rank of the new adapter (combine, rerank)")
    parser.add_argument("--density", type=float, default=0.5, metavar="SHARE", help="ties, dare: what is kept [0.5]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="dare: which values are kept [0]")
    parser.add_argument(
        "--base", metavar="BASE", help="convert: what the file was trained on; merge: the base, where it has moved"
    )
    parser.add_argument("--force", action="store_true", help="merge: into a base that the adapter was not made for")
    parser.add_argument("--revision", metavar="REV", help="convert: branch, tag or commit of a hub base")
    parser.add_argument("--alpha", type=float, metavar="A", help="convert: loralib's lora_alpha")
    parser.add_argument("--parts", metavar="1,0,1", help="convert: loralib's enable_lora, for fused layers")
    parser.add_argument("--device", metavar="DEVICE", help="merge: cpu, cuda, mps")
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="merge, convert: where downloaded models are kept"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


_RUNS_NEEDED = {
    "list": (0, 1), "show": (1, 1), "diff": (2, 2), "combine": (2, None), "rerank": (1, 1), "merge": (1, 1), "convert": (1, 1),
}  # fmt: skip


def _adapters(options: argparse.Namespace) -> int:
    from afina.jobs import adapters

    action, runs = options.action, options.runs
    least, most = _RUNS_NEEDED[action]
    if len(runs) < least or (most is not None and len(runs) > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"up to {most}"
        raise SettingsError(f"afina adapters {action} takes {wanted} RUN, {len(runs)} were given", "see --help")
    if action in ("combine", "rerank", "merge", "convert") and not options.out:
        raise SettingsError(f"afina adapters {action} needs --out DIR", "give a new folder")
    found: Any
    if action == "list":
        found = adapters.list_adapters(runs[0] if runs else Path("runs"))
    elif action == "show":
        found = adapters.show_adapter(runs[0])
    elif action == "diff":
        found = adapters.diff_adapters(*runs)
    elif action == "combine":
        weights = _numbers("--weights", options.weights) if options.weights else [1.0] * len(runs)
        path = adapters.combine_adapters(
            runs, weights, options.out, kind=options.kind, rank=options.rank, density=options.density, seed=options.seed
        )
        found = {"adapter": str(path)}
    elif action == "rerank":
        if not options.rank:
            raise SettingsError("afina adapters rerank needs --rank N", "give the new rank")
        found = {"adapter": str(options.out), "lost": adapters.rerank_adapter(runs[0], options.rank, options.out)}
    elif action == "convert":
        from afina.jobs.convert import convert_adapter

        if not options.base:
            raise SettingsError("afina adapters convert needs --base BASE", "give the base that it was trained on")
        path = convert_adapter(
            runs[0], options.out, base=options.base, alpha=options.alpha, revision=options.revision,
            parts=[bool(each) for each in _numbers("--parts", options.parts or "")], cache_dir=options.cache_dir,
        )  # fmt: skip
        found = {"adapter": str(path)}
    else:
        difference = adapters.merge_adapter(
            runs[0],
            options.out,
            device=options.device,
            cache_dir=options.cache_dir,
            base=options.base,
            force=options.force,
        )
        found = {"model": str(options.out), "largest_difference_of_logits": difference}
    if options.json:
        _print(json.dumps(found))
        return 0
    if action == "list":
        for entry in found:
            _print(
                f"{entry['path']}: {entry['base']}, rank {entry['rank']}, {entry['parameters'] / 1e6:.2f} M parameters"
            )
        return 0
    for key, value in found.items():
        if key == "layers" and action == "diff":
            for layer in value:
                _print(f"  {layer['layer']:50} cosine {_shown(layer['cosine'])}  distance {_shown(layer['distance'])}")
        elif value not in (None, [], {}):
            _print(f"{key.replace('_', ' '):28} {_shown(value)}")
    return 0


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise SettingsError(f"{flag} {text!r} are not numbers", "give them with commas, such as 0.7,0.3") from None


def _print(text: str) -> None:
    with writing("standard output"):
        print(text)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _data_flags(parser: argparse.ArgumentParser) -> None:
    from afina.core.config import fields
    from afina.data.prepare import PrepareSettings
    from afina.data.settings import DataSettings

    parser.usage = "afina data check|show|prepare FILE [--prompt TEXT] [--completion TEXT] [flags]"
    parser.add_argument(
        "action",
        choices=["check", "show", "prepare"],
        help="what is in it; a row as the model sees it; clean and split",
    )
    parser.add_argument("file", metavar="FILE", help="file or folder of examples, - for standard input")
    parser.add_argument("--base", default="starter", metavar="BASE", help="whose tokenizer counts [starter]")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloaded models are kept")
    parser.add_argument("--html", type=Path, metavar="FILE", help="check, show: a page with plots as well")
    parser.add_argument("--json", action="store_true", help="check: print one JSON object")
    parser.add_argument("--row", type=_positive, default=1, metavar="N", help="show: number of the row [1]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="prepare: folder to write to")
    wanted = {"prompt", "completion", "system", "references", "eval_path", "max_length", "target", "text"}
    for field in fields(DataSettings):
        if field.path in wanted:
            own = [flag for flag in field.flags if not flag.startswith("--data.")] or [f"--{field.path}"]
            parser.add_argument(
                *own,
                dest=f"data.{field.path}",
                default=argparse.SUPPRESS,
                metavar=field.path.upper(),
                help=field.help.replace("%", "%%"),
            )
    group = parser.add_argument_group("prepare")
    for field in fields(PrepareSettings):
        options: dict[str, Any] = {"action": "store_true"} if field.switch else {"metavar": field.path.upper()}
        group.add_argument(
            f"--{field.path}",
            dest=f"prepare.{field.path}",
            default=argparse.SUPPRESS,
            help=field.help.replace("%", "%%"),
            **options,
        )


def _data(options: argparse.Namespace) -> int:
    from afina.core.config import build
    from afina.data.prepare import PrepareSettings
    from afina.data.settings import DataSettings
    from afina.jobs.data import check_data, following, prepare_data, show_row
    from afina.ui.display import show_check, show_tokens

    given = vars(options)
    settings = build(DataSettings, {"path": options.file, **_section(given, "data.")})
    how = _section(given, "prepare.")
    if how and options.action != "prepare":
        raise SettingsError(f"--{next(iter(how))} is read by `afina data prepare` only", "leave it out")
    if options.action == "check":
        found = check_data(settings, base=options.base, page=options.html, cache_dir=options.cache_dir)
        if options.json:
            _print(json.dumps(found.json(), ensure_ascii=False))
        else:
            with writing("standard output"):
                show_check(found, following(found, settings))
        return 0 if found.ready else 1
    if options.action == "show":
        row = show_row(settings, options.row, base=options.base, page=options.html, cache_dir=options.cache_dir)
        with writing("standard output"):
            show_tokens(row)
        return 0
    if not options.out:
        raise SettingsError("afina data prepare needs --out DIR", "give a new folder")
    result = prepare_data(settings, build(PrepareSettings, how), options.out)
    for what, n in result.done.items():
        _print(f"{n} rows {what}")
    _print(
        f"{len(result.train)} rows in {options.out / 'train.jsonl'}, {len(result.test)} in {options.out / 'test.jsonl'}"
    )
    return 0


def _section(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "train": ("adapt a base model to a file of examples, verify and evaluate it", _train_flags, _train),
    "eval": (
        "score an adapted model and its base on a file of examples; replaces the evaluation in RUN",
        _eval_flags,
        _eval,
    ),
    "generate": ("let an adapted model answer", _generate_flags, _generate),
    "adapters": (
        "adapters: listed, shown, compared, combined, cut, merged into their base, converted",
        _adapters_flags,
        _adapters,
    ),
    "data": ("a file of examples: checked, shown as the model sees it, cleaned and split", _data_flags, _data),
    "models": ("base models: the catalogue, facts, downloads", _models_flags, _models),
}

if __name__ == "__main__":
    sys.exit(main())
