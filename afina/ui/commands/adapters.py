"""`afina adapters`: list, show, diff, combine, rerank, merge, convert."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from afina.core.config import Settings, json_object
from afina.ui.common import View, in_words, show_facts, shown

if TYPE_CHECKING:
    from afina.jobs.adapters.diff import DiffAdaptersResult
    from afina.jobs.adapters.list import ListAdaptersResult
    from afina.jobs.adapters.merge import MergeAdapterResult

_WIDTH = 28


def _show_list(settings: Settings, result: "ListAdaptersResult") -> None:
    for entry in json_object(result):
        if "problems" in entry:
            print(f"{entry['path']}: cannot be used: {'; '.join(entry['problems'])}")
            if entry["remedy"]:
                print(f"  → {entry['remedy']}")
        else:
            millions = f"{entry['parameters'] / 1e6:.2f} M parameters"
            base = entry["base"] or "it names no base (--base does)"
            print(f"{entry['path']}: {base}, rank {entry['rank']}, {millions}")


def _show(settings: Settings, result: BaseModel) -> None:
    show_facts({_named(name): value for name, value in json_object(result).items()}, _WIDTH)


def _show_diff(settings: Settings, result: "DiffAdaptersResult") -> None:
    for name, (first, second) in result.settings.items():
        print(f"{in_words(_named(name)):{_WIDTH}} {_value(first)} → {_value(second)}")
    show_facts(result.model_dump(exclude={"layers", "settings"}), _WIDTH)
    for layer in result.layers:
        print(f"  {layer['layer']:50} cosine {shown(layer['cosine'])}  distance {shown(layer['distance'])}")


def _named(fact: str) -> str:
    """What is a setting of LoRA under its name, which can be typed."""
    from afina.lora.config import LoraConfig  # late: help needs it not

    return f"lora.{fact}" if fact in LoraConfig.model_fields else fact


def _value(value: Any) -> str:
    """Of a setting: a list as it is typed, and what is not set as such."""
    if value in (None, [], (), {}):
        return "not set"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else shown(value)


def _show_merged(settings: Settings, result: "MergeAdapterResult") -> None:
    facts = {"model": result.model, "precision": result.precision}
    for dtype, difference in result.differences.items():
        facts[f"difference in {dtype}"] = f"{difference:.2g} of the largest logit"
    show_facts(facts, _WIDTH)


VIEWS = {
    "adapters list": View(_show_list),
    "adapters show": View(_show),
    "adapters diff": View(_show_diff),
    "adapters combine": View(_show),
    "adapters rerank": View(_show),
    "adapters merge": View(_show_merged),
    "adapters convert": View(_show),
}
