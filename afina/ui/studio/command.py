"""`studio`: a page in the browser that leads through all steps, from a file to a model in use."""

import secrets
import webbrowser
from contextlib import closing
from pathlib import Path
from threading import Timer

from afina.core.config import Result, Settings, setting
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.serving.http.sockets import bind
from afina.ui.studio.workspace import Workspace

_HOST = "127.0.0.1"
_WAITING = 128  # connections at most that wait until they are taken
_SOON = 0.5  # seconds until the browser is opened


class StudioSettings(Settings):
    port: int = setting(8090, ge=0, le=65_535)
    """The port on this machine; 0 takes a free one."""
    workspace: Path = setting(Path("afina-studio"), metavar="DIR")
    """Folder for data, runs and exports; it is made where there is none."""
    no_browser: bool = setting(False, "--no-browser")
    """Only print the address."""


class StudioResult(Result):
    address: str
    """Where the pages were."""


def studio(settings: StudioSettings, listener: Listener = ignore) -> StudioResult:
    """Serves the pages until Ctrl-C. The first line on standard output is the whole address, with its token; what is
    being trained goes on when it ends.

    Raises `OutputError` where the workspace cannot be written or is open elsewhere, `SettingsError` where the port is
    taken."""
    with closing(Workspace(settings.workspace)) as workspace, bind(_HOST, settings.port) as held:
        token = secrets.token_urlsafe(24)
        plain = f"http://{_HOST}:{held.getsockname()[1]}/"
        address = f"{plain}?token={token}"
        held.listen(_WAITING)
        print(address, flush=True)
        listener(Notice(f"the pages of {workspace.root}; Ctrl-C ends them, and not what is being trained"))
        if not settings.no_browser:
            opening = Timer(_SOON, webbrowser.open, [address])
            opening.daemon = True
            opening.start()
        from afina.ui.studio.app import serve  # imports the libraries: some seconds, in which the browser waits

        serve(workspace, token, held)
    return StudioResult(address=plain)


JOB = Job.of(studio)
