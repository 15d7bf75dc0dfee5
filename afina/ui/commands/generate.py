"""`afina generate`."""

import sys
from typing import TYPE_CHECKING

from afina.core.errors import counted
from afina.core.text import json_text
from afina.ui.common import View

if TYPE_CHECKING:
    from afina.jobs.generate import GenerateResult, GenerateSettings
    from afina.jobs.generate_served import GenerateServedSettings


def _show(settings: "GenerateSettings | GenerateServedSettings", result: "GenerateResult") -> None:
    if settings.out:
        print(f"{counted(len(result.rows), 'answer')} in {settings.out}", file=sys.stderr)
        return
    for row in result.rows:
        if getattr(settings, "data", None):
            print(json_text(row, sys.stdout.encoding))
        elif settings.base_too:
            print(f"base:    {row['base']}\nadapted: {row['answer']}")
        else:
            print(row["answer"])


VIEWS = {name: View(_show, json=False) for name in ("generate", "generate --url")}
