"""`afina serve`."""

from typing import TYPE_CHECKING

from afina.core.errors import counted
from afina.ui.common import View

if TYPE_CHECKING:
    from afina.jobs.serve import ServeResult, ServeSettings


def _show(settings: "ServeSettings", result: "ServeResult") -> None:
    requests = counted(result.requests, "request was", "requests were")
    print(f"{requests} answered, with {counted(result.generated_tokens, 'token')}")


VIEWS = {"serve": View(_show, json=False)}
