"""`afina fit`."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from afina.core.errors import counted
from afina.core.events import minutes
from afina.forecast.estimate import shared_in_words
from afina.forecast.expected import NO_DATA
from afina.ui.common import View, flags_of, plain_table, size, train_command, wide_console
from afina.ui.output import Output

if TYPE_CHECKING:
    from afina.jobs.fit import FitResult, FitSettings

_NAMES = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning", "head": "trained head"}
_OWN = {"lora": "", "qlora": " --quantize nf4", "full": " --method full", "head": " --method head"}
_PARTS = (
    ("weights", ("weights", "copies")),
    ("trained", ("adapter", "gradients", "optimizer")),
    ("activ.", ("activations",)),
    ("logits", ("logits",)),
    ("cache", ("cache",)),
    ("other", ("overhead",)),
)
_LEGEND = """
GB is the larger of two sums: training (all parts but the cache), and generation afterwards (weights, trained \
parameters, cache and other).
trained: the parameters that are trained, with gradients, Adam's two moments, a copy in 32 bits and the best so far. \
Where gradients are more than activations, they count in their place.
training: all epochs, and between them the held-out evaluations and checkpoints. answers: those of base and adapted \
model, after it."""


def _show(settings: "FitSettings", result: "FitResult") -> None:
    """Prints the forecasts, and the command that trains."""
    out, rows = wide_console(), result.work
    out.print(
        f"{result.base}: {size(result.parameters)} parameters; "
        f"{counted(rows['rows'], 'row')}, {counted(rows['tokens'], 'token')} "
        f"({rows['known']}), the longest {rows['longest']:,}"
    )
    computed = (seen["computed"] for seen in result.methods.values() if "computed" in seen)
    if shared := shared_in_words(next(computed, 1.0)):  # of LoRA, which its dropout may keep from sharing
        out.print(shared)
    if not result.here:
        out.print(f"its files are not here: about {result.file_bytes / 1e9:.1f} GB to fetch")
    _machine(out, result.machine, result.methods, result.free_bytes[result.machine], full=True)
    for each in result.machines.values():
        _machine(out, each["machine"], each["methods"], result.free_bytes[each["machine"]], full=False)
    out.print(_LEGEND)
    data = settings.run.data.path
    for more, base in _fitting(result.methods):
        named = {*more.split(), *(["--quantize"] if "--method" in more else [])}  # other methods train the base itself
        kept = [each for each in flags_of(settings.run) if each.split()[0] not in named]
        command = train_command("DATA" if data == NO_DATA else data, kept, base or result.base)
        out.print(f"\nTrain it:  {command}{more}")
        return
    out.print("\nNothing of this fits here.")


def _fitting(methods: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What fits, the simplest first: the flags that it takes besides those given, and another base where needed."""
    ready = {method: seen["seconds"] for method, seen in methods.items() if seen.get("fits")}
    if ready.get("qlora", math.inf) < ready.get("lora", 0):  # where plain LoRA has to recompute its activations
        del ready["lora"]
    for method in ready:
        yield _OWN[method], ""
    for method, seen in methods.items():
        for each in seen.get("remedies", ()):
            flags = each["flags"]
            yield f"{_OWN[method]} {flags}" if "--method" not in flags else f" {flags}", ""
    for method, seen in methods.items():
        for each in seen.get("bases", ()):
            yield _OWN[method], each["base"]


def _machine(out: Output, name: str, methods: dict[str, dict[str, Any]], free: int, full: bool) -> None:
    grid = plain_table()
    heads = ["GB", *(head for head, _ in _PARTS if full), "epochs", "per epoch", "training", "answers", "disk", ""]
    grid.add_column("method")
    for head in heads:
        grid.add_column(head, justify="left" if not head else "right", no_wrap=True)
    notes = []
    for method, seen in methods.items():
        if "error" in seen:
            notes.append(f"{_NAMES[method]}: {seen['error']}")
            continue
        memory = seen["memory_gb"]
        parts = [f"{sum(memory[each] for each in own):.2f}" for _, own in _PARTS] if full else []
        fits = "fits" if seen["fits"] else "does not fit"
        grid.add_row(
            _NAMES[method], f"{memory['total']:.2f}", *parts, f"{seen['epochs']:g}", minutes(seen["epoch_seconds"]),
            minutes(seen["seconds"]), minutes(seen["evaluation_seconds"]), f"{seen['disk_gb']:.2f}",
            fits + (", activations recomputed" if seen["checkpoint_activations"] else ""),
        )  # fmt: skip
        if not seen["fits"]:
            notes.append(f"{_NAMES[method]}{_would_fit(method, seen)}")
    out.print(f"\n{name}: {free / 1e9:.1f} GB free (sizes in GB)", style="bold")
    out.print(grid)
    for note in notes:
        out.print(note)


def _would_fit(method: str, seen: dict[str, Any]) -> str:
    changes, bases = seen["remedies"], seen["bases"]
    if changes:
        same = method == "lora" or "--method lora" not in changes[0]["flags"]
        ways = [f"{each['flags']} ({each['memory_gb']:.1f} GB, {minutes(each['seconds'])})" for each in changes]
        return f" {'fits' if same else 'does not fit;'} with {'; or '.join(ways)}"
    if bases:
        names = [f"{each['base']} ({each['memory_gb']:.1f} GB)" for each in bases]
        return f" fits with a smaller base: {', '.join(names)}"
    return ": no change of the settings makes it fit"


VIEWS = {"fit": View(_show)}
