"""What is counted of a server, in the text format of Prometheus (version 0.0.4).

Whoever counts does so from one thread or the other; additions of Python numbers under its lock lose nothing.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
Labels = tuple[str, ...]


class Metric:
    """Numbers under one name, by the values of `labels`."""

    kind: ClassVar[str]

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)
        self._lock = threading.Lock()

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        yield from self.samples()

    def samples(self) -> Iterator[str]:
        raise NotImplementedError

    def _sample(self, values: Labels, value: float, end: str = "", more: str = "") -> str:
        pairs = [f'{name}="{_escaped(text)}"' for name, text in zip(self.labels, values, strict=True)]
        inside = ",".join([*pairs, *([more] if more else [])])
        return f"{self.name}{end}{{{inside}}} {_number(value)}" if inside else f"{self.name}{end} {_number(value)}"


class Counter(Metric):
    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, amount: float = 1.0, *labels: str) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    @property
    def total(self) -> float:
        with self._lock:
            return sum(self._values.values())

    def samples(self) -> Iterator[str]:
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            yield self._sample(labels, value)


class Gauge(Metric):
    """What is so now: `read` is asked whenever somebody looks."""

    kind = "gauge"

    def __init__(
        self, name: str, help: str, read: Callable[[], dict[Labels, float] | float], labels: Sequence[str] = ()
    ) -> None:
        super().__init__(name, help, labels)
        self._read = read

    def samples(self) -> Iterator[str]:
        found = self._read()
        for labels, value in sorted(found.items()) if isinstance(found, dict) else [((), found)]:
            yield self._sample(labels, value)


class Histogram(Metric):
    """How often a value was up to each of the `bounds`."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        super().__init__(name, help)
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def samples(self) -> Iterator[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        seen = 0
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), counts, strict=True):
            seen += count
            yield self._sample((), seen, "_bucket", f'le="{bound}"')
        yield self._sample((), total, "_sum")
        yield self._sample((), seen, "_count")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Metrics:
    """What a server counts. Values of the label `model` are names that the registry knows, so that no client makes
    new ones."""

    def __init__(self) -> None:
        self.requests = Counter(
            "afina_requests_total", "Requests answered, by route and status.", ("model", "route", "status")
        )
        self.cancelled = Counter("afina_requests_cancelled_total", "Answers that their reader gave up.")
        self.rejected = Counter("afina_requests_rejected_total", "Requests refused before any work.", ("reason",))
        self.faults = Counter("afina_faults_total", "Answers that the engine failed on.")
        self.prompt_tokens = Counter("afina_prompt_tokens_total", "Tokens of prompts, cached ones among them.")
        self.generated_tokens = Counter("afina_generated_tokens_total", "Tokens of answers.")
        self.cached_tokens = Counter("afina_cached_tokens_total", "Tokens of prompts that were not read again.")
        self.queue = Histogram("afina_queue_seconds", "From a request to the batch.", _SECONDS)
        self.first_token = Histogram(
            "afina_time_to_first_token_seconds", "From a request to its first token.", _SECONDS
        )
        self.per_token = Histogram(
            "afina_time_per_output_token_seconds", "Mean time of an answer's tokens after the first.",
            (0.001, 0.0025, *_SECONDS[:8]),
        )  # fmt: skip
        self.whole = Histogram("afina_request_seconds", "From a request to the end of its answer.", _SECONDS)
        self.rows = Histogram("afina_batch_rows", "Answers that went on in one step.", _COUNTS)
        self.adapters = Histogram("afina_batch_adapters", "Different adapters in one step.", _COUNTS)
        self._gauges: list[Gauge] = []

    def gauge(
        self, name: str, help: str, read: Callable[[], dict[Labels, float] | float], labels: Sequence[str] = ()
    ) -> None:
        self._gauges.append(Gauge(name, help, read, labels))

    def text(self) -> str:
        """All of it, as `GET /metrics` answers."""
        own = [each for each in vars(self).values() if isinstance(each, Metric)]
        return "".join(f"{line}\n" for each in [*own, *self._gauges] for line in each.lines())
