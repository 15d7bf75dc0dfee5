"""`afina train`."""

import argparse
from pathlib import Path

from afina.core.errors import SettingsError, writing
from afina.ui.common import given_settings, run_settings, settings_flags


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina train DATA [--prompt TEXT] [--completion TEXT] [--base BASE] [--out DIR] [flags]"
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was killed or interrupted")
    settings_flags(parser)


def run(options: argparse.Namespace) -> int:
    from afina.jobs.train import resume, train
    from afina.measure.pages.report import try_command
    from afina.ui.display import Display, show_result

    if options.resume:
        if given_settings(options) or options.config:
            raise SettingsError(
                f"--resume {options.resume} repeats the recorded settings and takes no others",
                "give --resume RUN alone",
            )
        with Display() as display:
            result = resume(options.resume, display)
    else:
        settings = run_settings(options)
        with Display() as display:
            result = train(settings, display)
    with writing("standard output"):
        show_result(result.evaluation.json(), {"adapter": result.adapter, "report": result.report})
        print(f"\nTry it:  {try_command(result.folder, result.prompt)}")
    return 0
