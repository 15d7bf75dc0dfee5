"""What people see goes through here: text, whatever it looks like."""

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from afina.core.text import inner, visible


class Output(Console):
    """A console that reads no markup, emoji or links in text, and shows what would act on the terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(file=inner(stream), markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The last step of everything that is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """rich would end the process here, with a code of its own."""
        raise
