"""The page: the four steps and shipping for people who use a browser instead of a terminal.

A workspace folder comes in; a server on this machine's own address shows it as pages. The state is the files alone:
runs, and the records of work (`work`), which processes of their own do (`worker`), so that a reload, a second tab or a
new server show the same. `guard` says who may ask, `pages/` holds a file for each page, `texts/` its words in each
language, `charts` draws, `relay` hands chats to `afina serve`. Pages call jobs through their registry, nothing else.
Public: `StudioSettings`, `studio`.
"""

from afina.core.lazy import exports

__getattr__, __all__ = exports(
    __name__, {"StudioSettings": "afina.ui.studio.command", "studio": "afina.ui.studio.command"}
)
