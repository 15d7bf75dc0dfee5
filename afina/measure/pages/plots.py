"""Plots as SVG text, readable on light and dark pages."""

import functools
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec

from afina.core.events import HeldOut, Step
from afina.core.text import visible

P = ParamSpec("P")

_INK, _TRAIN, _HELD = "#7a7f87", "#8fb3d9", "#d1495b"
_COLOURS = ("#3f7fbf", "#d1495b", "#3a9c6b", "#c98a1b", "#8f63b5")  # readable on white and on nearly black


@contextmanager
def _plain() -> Iterator[None]:
    """matplotlib as it comes, whatever the current folder or the user's home say of it: text is no formula, and a
    letter that its fonts lack is a box, and a label too long for its plot is cut, in silence."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in ("Glyph ", ".*Matplotlib currently does not support", "constrained_layout not applied"):
                warnings.filterwarnings("ignore", message)
            # Its import reads a file of settings that the current folder has.
            elsewhere = "matplotlib" not in sys.modules and Path("matplotlibrc").exists()
            with chdir(Path(__file__).parent) if elsewhere else nullcontext():
                import matplotlib
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams["text.parse_math"] = False
                yield
    finally:
        logger.setLevel(level)


def _plot(draw: Callable[P, str]) -> Callable[P, str]:
    """A function that draws, whatever is set."""

    @functools.wraps(draw)
    def plain(*args: P.args, **kwargs: P.kwargs) -> str:
        with _plain():
            return draw(*args, **kwargs)

    return plain


@_plot
def histogram(values: Sequence[int], what: str, limit: int | None = None) -> str:
    """How many rows have which length; a line at `limit` if some come near it."""
    figure, axes = _figure()
    axes.hist(values, bins=min(60, max(5, len(set(values)))), color=_TRAIN)
    if limit is not None and max(values) > 0.5 * limit:
        axes.axvline(limit, color=_HELD, label=f"limit, {limit}")
        axes.legend(frameon=False, labelcolor=_INK)
    axes.set_xlabel(what)
    axes.set_ylabel("rows")
    _whole(axes.yaxis)
    return _svg(figure, axes)


@_plot
def bars(counts: Sequence[tuple[str, float]], what: str) -> str:
    """A bar per name, the largest on top."""
    figure, axes = _figure(height=0.7 + 0.28 * len(counts))
    positions = range(len(counts))[::-1]
    axes.barh(positions, [count for _, count in counts], color=_TRAIN)
    axes.set_yticks(positions, [visible(name[:40]) for name, _ in counts])
    axes.set_xlabel(what)
    _whole(axes.xaxis)
    return _svg(figure, axes)


@_plot
def loss_curve(steps: Sequence[Step], held_out: Sequence[HeldOut]) -> str:
    """Training loss of each step (thin), its running mean, and the held-out measure, over steps.

    A measure other than the loss has an axis of its own, on the right.
    """
    figure, axes = _figure()
    x = [step.step for step in steps]
    axes.plot(x, [step.loss for step in steps], color=_TRAIN, linewidth=0.8, alpha=0.6, label="training, each step")
    axes.plot(
        x, _running_mean([step.loss for step in steps]), color=_TRAIN, linewidth=2, label="training, running mean"
    )
    other = next((e for e in held_out if e.measure != "loss"), None)
    watched = axes.twinx() if other else axes
    watched.plot(
        [e.step for e in held_out], [e.value for e in held_out], color=_HELD, marker="o", linewidth=2, label="held out"
    )
    best = [e for e in held_out if e.best]
    if best:
        watched.plot(
            best[-1].step, best[-1].value, "o", markersize=11, markerfacecolor="none", color=_HELD, label="saved"
        )
    if other:
        better = "lower" if other.lower_is_better else "higher"
        watched.set_ylabel(f"held out: {other.measure} ({better} is better)", color=_HELD)
        watched.tick_params(colors=_HELD)
    axes.set_xlabel("step")
    _whole(axes.xaxis)
    axes.set_ylabel("loss, nats")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, axes)


@_plot
def quality_against_cost(
    points: dict[str, tuple[float, float, Sequence[float]]], flat: dict[str, float], cost: str, quality: str
) -> str:
    """(cost, quality, its interval) of each method that was trained; those that were not are horizontal lines."""
    figure, axes = _figure()
    for i, (name, value) in enumerate(flat.items()):
        axes.axhline(value, color=_INK, linestyle=("--", ":")[i % 2], linewidth=1, label=name)
    for (name, (x, y, (low, high))), colour in zip(points.items(), cycle(_COLOURS)):
        axes.errorbar(x, y, yerr=[[max(0, y - low)], [max(0, high - y)]], fmt="o", color=colour, capsize=3, label=name)
    axes.set_xlabel(cost)
    axes.set_ylabel(quality)
    axes.set_xlim(0, 1.1 * max(x for x, _, _ in points.values()))
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, axes)


@_plot
def search_history(trials: Sequence[tuple[int, float, bool]]) -> str:
    """(number, held-out loss, finished) of each trial, and the best so far."""
    figure, axes = _figure()
    ended = [(number, loss) for number, loss, complete in trials if complete]
    pruned = [(number, loss) for number, loss, complete in trials if not complete]
    axes.plot([n for n, _ in pruned], [loss for _, loss in pruned], "x", color=_INK, label="pruned")
    axes.plot([n for n, _ in ended], [loss for _, loss in ended], "o", color=_COLOURS[0], label="finished")
    best = [min(loss for _, loss in ended[: i + 1]) for i in range(len(ended))]
    axes.step([n for n, _ in ended], best, where="post", color=_HELD, label="best so far")
    axes.set_xlabel("trial")
    _whole(axes.xaxis)
    axes.set_ylabel("held-out loss, nats")
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, axes)


@_plot
def search_rates(trials: Sequence[tuple[float, float]], default: float) -> str:
    """(learning rate, held-out loss) of each finished trial; a line at the default rate."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = _figure()
    axes.plot([rate for rate, _ in trials], [loss for _, loss in trials], "o", color=_COLOURS[0])
    axes.axvline(default, color=_INK, linestyle="--", linewidth=1, label=f"default, {default:.2g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate")
    axes.set_ylabel("held-out loss, nats")
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, axes)


def _whole(axis: Any) -> None:
    """Ticks at whole numbers only, of an axis of counts."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _figure(height: float = 3.4) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Any, axes: Any) -> str:
    from matplotlib.text import Text

    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    for spine in axes.spines.values():
        spine.set_color(_INK)
    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text()))
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r' style="([^"]*)"', _as_attributes, text)


def _as_attributes(style: re.Match[str]) -> str:
    """A style as attributes of its element: a page that allows its own stylesheet alone would not read it."""
    parts = (each.partition(":") for each in style[1].split(";") if each.strip())
    return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in parts)


def _running_mean(values: Sequence[float], window: int = 10) -> list[float]:
    return [sum(part := values[max(0, i - window + 1) : i + 1]) / len(part) for i in range(len(values))]
