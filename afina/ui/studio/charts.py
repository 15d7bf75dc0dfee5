"""Charts as SVG text in the page's own colours, while work is done; reports have those of `measure.pages.plots`."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from afina.core.events import Event, HeldOut, Step
from afina.ui.studio.words import Words

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 260, 56, 30
_MOST_POINTS = 400
Point = tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """The losses of a training: (step, loss) in nats per token, and those of the held-out rows by the measure."""

    training: list[Point]
    held_out: list[Point]
    measure: str

    @classmethod
    def of(cls, events: Sequence[Event]) -> "Curves":
        """Training is smoothed over ten steps."""
        steps = [e for e in events if isinstance(e, Step)]
        kept = [*range(0, len(steps), max(1, len(steps) // _MOST_POINTS))]
        if steps and kept[-1] != len(steps) - 1:
            kept.append(len(steps) - 1)
        near = [(steps[i].step, steps[max(0, i - 9) : i + 1]) for i in kept]
        smooth = [(float(step), sum(e.loss for e in few) / len(few)) for step, few in near]
        held_out = [e for e in events if isinstance(e, HeldOut)]
        return cls(smooth, [(float(e.step), e.value) for e in held_out], held_out[-1].measure if held_out else "loss")

    def svg(self, words: Words, title: str) -> str:
        """A chart that is named for those who hear it; a table beside it has its numbers, which are written as in the
        language of `words`. Empty where there are too few points."""
        shown = self.training + (self.held_out if self.measure == "loss" else [])
        if len(self.training) < 2:
            return ""
        frame = _Frame(shown)
        parts = [frame.axes(words)]
        parts.append(f'<polyline class="a" points="{frame.points(self.training)}"/>')
        if self.measure == "loss" and self.held_out:
            parts.append(f'<polyline class="b" points="{frame.points(self.held_out)}"/>')
            parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in map(frame.at, self.held_out)]
        view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
        return f'<svg class="chart" {view}>{"".join(parts)}</svg>'


class _Frame:
    """Where points of steps and losses stand."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.most_x = max(x for x, _ in points) or 1.0
        self.most_y = 1.05 * max(y for _, y in points) or 1.0

    def at(self, point: Point) -> Point:
        x, y = point
        across, up = (_WIDTH - _LEFT - 10) * x / self.most_x, (_HEIGHT - _BOTTOM - 10) * y / self.most_y
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    def points(self, points: Sequence[Point]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))

    def axes(self, words: Words) -> str:
        lines = []
        for i in range(5):
            value = self.most_y * i / 4
            _, y = self.at((0, value))
            kind = "axis" if i == 0 else "grid"
            lines.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{words.number(value, 2)}</text>')
        lines += [
            f'<text x="{self.at((self.most_x * i / 4, 0))[0]:.1f}" y="{_HEIGHT - 8}" '
            f'text-anchor="{"middle" if i < 4 else "end"}">'
            f"{words.number(self.most_x * i / 4)}</text>"
            for i in range(1, 5)
        ]
        return "".join(lines)
