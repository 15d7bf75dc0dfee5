"""`afina train`."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError, writing
from afina.ui.common import setting_flag


def flags(parser: argparse.ArgumentParser) -> None:
    from afina.core.config import fields
    from afina.jobs.settings import RunSettings

    parser.usage = "afina train DATA [--prompt TEXT] [--completion TEXT] [--base BASE] [--out DIR] [flags]"
    parser.add_argument("data", nargs="?", metavar="DATA", help="file of examples: JSONL, CSV, Parquet, text and more")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was killed or interrupted")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; flags override it")
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for field in fields(RunSettings):
        if field.path == "data.path":
            continue
        section = field.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        setting_flag(groups[section], field, field.flags[::-1], field.path)


def run(options: argparse.Namespace) -> int:
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
