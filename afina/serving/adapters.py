"""An adapter as it is served: read whole from PEFT's files, checked against the base, ready to come with the rows of a
batch.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from afina.core.errors import AdapterError, InputError, enumerated
from afina.core.files import leads_out, read_json, sha256_of_all
from afina.core.limits import PATTERN_BYTES, PATTERN_SECONDS
from afina.core.limits.process import Failed, TooMuch, in_child
from afina.core.text import command_line
from afina.core.updates import Factors
from afina.lora.config import LoraConfig
from afina.lora.injection import wrappers
from afina.lora.layer import LoraLayer
from afina.lora.modules_to_save import trained_copies
from afina.lora.peft_config import CONFIG, config_of, read_peft
from afina.lora.peft_files import WEIGHTS, put_adapter, read_weights
from afina.lora.targets import find_targets
from afina.models.load import Base
from afina.models.templates import read_template
from afina.models.tokenizer import Tokenizer, with_template
from afina.runs.facts import adapter_folder, read_facts

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Card:
    """What the files of an adapter say before its weights are read. `hash` is of weights and configuration."""

    folder: Path
    hash: str
    rank: int
    form: str
    template: str | None
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """Of an adapter's folder, or a run's. Raises `AdapterError`, also where its files are links that lead out."""
        folder = adapter_folder(folder)
        for name in (WEIGHTS, CONFIG, TEMPLATE, "tokenizer_config.json"):
            if (folder / name).exists() and leads_out(folder / name, folder):
                raise AdapterError(f"{name} is a link that leads out of the adapter's folder", "copy the file itself")
        raw, variant = read_peft(folder)
        return cls(
            folder, content_hash(folder), int(raw.get("r") or 0), variant.name, _template(folder), read_facts(folder)
        )


def content_hash(folder: Path) -> str:
    """SHA-256 over the digests of the adapter's weights and of its configuration, which has their scale."""
    return sha256_of_all(file for name in (CONFIG, WEIGHTS) if (file := folder / name).is_file())


def _template(folder: Path) -> str | None:
    """The chat template that was saved with an adapter."""
    try:
        if (folder / TEMPLATE).is_file():
            return read_template(folder / TEMPLATE)
        if (folder / "tokenizer_config.json").is_file():
            saved = read_json(folder / "tokenizer_config.json").get("chat_template")
            return saved if isinstance(saved, str) and saved.strip() else None
    except (InputError, AttributeError) as error:
        raise AdapterError(f"the chat template saved with the adapter cannot be read: {error}") from error
    return None


def tokenizer_for(base: Base, card: Card) -> Tokenizer:
    """The base's tokenizer with the template that was saved with the adapter, where that is another one. Raises
    `AdapterError` where it cannot be used."""
    own = base.tokenizer
    if card.template is None or card.template == own.inner.chat_template or not own.task.continues_text:
        return own
    try:
        return with_template(copy.deepcopy(own), card.template)
    except InputError as error:
        raise AdapterError(f"the chat template saved with the adapter cannot be used: {error.problems[0]}") from error


@dataclass(frozen=True, eq=False)
class Adapter:
    """The `Updates` of an adapter. `bytes` is what they take in memory, as they were read."""

    key: str
    factors: Mapping[str, Factors]
    scaled: dict[float, "Adapter"] = field(default_factory=dict, repr=False, compare=False)

    @property
    def bytes(self) -> int:
        tensors = [each for factors in self.factors.values() for each in factors[:2]]
        return sum(each.numel() * each.element_size() for each in tensors)

    @property
    def rank(self) -> int:
        return max(len(each.a_RI) for each in self.factors.values())

    def times(self, scale: float) -> "Adapter | None":
        """The same, multiplied; None of nothing. Those asked for last stay, so that rows of the same scale share."""
        if scale == 1:
            return self
        if scale == 0:
            return None
        if scale not in self.scaled:
            if len(self.scaled) >= 8:
                self.scaled.pop(next(iter(self.scaled)))
            factors = {path: each._replace(scaling=each.scaling * scale) for path, each in self.factors.items()}
            self.scaled[scale] = Adapter(f"{self.key}×{scale!r}", factors)
        return self.scaled[scale]


def read_adapter(base: Base, card: Card, name: str) -> Adapter:
    """The adapter of `card`, for rows of a batch on `base`; all of it is checked.

    Raises `AdapterError` with everything in it that does not fit, and for what is more than A and B beside linear
    layers, which cannot come with rows: that is served alone, merged.
    """
    check_trained_on(base, card)
    state = read_weights(card.folder)
    shadow = _shadow(base.model.module)
    raw, variant = read_peft(card.folder)
    _check_patterns(shadow, config_of(raw, variant, card.folder / CONFIG))
    put_adapter(shadow, card.folder, state, told=sys.maxsize)
    if refused := list(_not_served(shadow)):
        raise AdapterError(
            [f"adapter {name!r} cannot be in one batch with others", *refused],
            f"serve it alone: `{command_line('serve', name, '--merge', name)}` merges it into its base at the start",
        )
    factors: dict[str, Factors] = {}
    for path, wrapper in wrappers(shadow):
        layer: Any = wrapper
        a_RI, b_OR = (each.detach().float().clone().contiguous() for each in (layer.lora_a, layer.lora_b))
        factors[path] = Factors(a_RI, b_OR, float(layer.scaling))
    found = Adapter(card.hash, factors)
    if not any(each.b_OR.any() and each.a_RI.any() for each in factors.values()):
        raise AdapterError(
            f"adapter {name!r} is an adapter of zeros: it changes nothing",
            "it was saved before it was trained: give the one that training ended with",
        )
    if content_hash(card.folder) != card.hash:
        raise AdapterError(f"the files of adapter {name!r} changed while they were read", "load it again")
    return found


def check_trained_on(base: Base, card: Card) -> None:
    """Raises `AdapterError` where the adapter's files say that it was trained on another base, or on other tokens."""
    if not card.facts:
        return
    trained_on, problems = card.facts["base"], []
    if trained_on["sha256"] != base.facts.sha256:
        problems.append(
            f"it was trained on the base {trained_on['name']!r} (weights {trained_on['sha256'][:12]}…), this server "
            f"has {base.facts.name!r} (weights {base.facts.sha256[:12]}…)"
        )
    if card.facts.get("tokenizer_sha256", base.tokenizer.hash) != base.tokenizer.hash:
        problems.append("it was trained with another tokenizer than the base has now")
    if card.facts.get("task", "causal") != base.task.name:
        problems.append(f"it was trained for task {card.facts['task']}, this server's base is for {base.task.name}")
    if problems:
        raise AdapterError(problems, "serve it on the base that it was trained on")


def _shadow(module: nn.Module) -> nn.Module:
    """The modules of a model again, over the same weights: what is put into them does not reach the model, which goes
    on meanwhile."""
    memo: dict[int, Any] = {}
    for each in module.modules():
        tables = (each._parameters.values(), each._buffers.values(), vars(each).values())
        memo |= {id(value): value for table in tables for value in table if isinstance(value, Tensor)}
    return copy.deepcopy(module, memo)


def _check_patterns(module: nn.Module, config: LoraConfig) -> None:
    """A pattern that is tried for ever would stop this whole process: it is tried in a child first."""
    named = (config.target_modules, config.exclude_modules, config.modules_to_save)
    patterns = [each for names in named for each in ((names,) if isinstance(names, str) else names)]
    if not (
        config.rank_pattern or config.alpha_pattern or config.layers_pattern
        or any(each.startswith("re:") for each in patterns)
    ):  # fmt: skip
        return
    try:
        in_child(lambda: len(find_targets(module, config, lambda _: None)), PATTERN_SECONDS, PATTERN_BYTES)
    except TooMuch as error:
        raise AdapterError(f"the patterns of the adapter's layers take more than {error}", "name the layers") from error
    except Failed as error:
        raise AdapterError(str(error), error.remedy) from error


def _not_served(module: nn.Module) -> list[str]:
    """What in an adapted `module` is more than scaling · B A beside a linear layer, in words."""
    found: dict[str, list[str]] = {}
    for path, wrapper in wrappers(module):
        if not isinstance(wrapper, LoraLayer):
            found.setdefault("embeddings of single tokens are trained", []).append(path)
        elif wrapper.kind != "linear":
            what = {"embedding": "an embedding is adapted", "experts": "tensors of experts are adapted"}[wrapper.kind]
            found.setdefault(what, []).append(path)
        elif not wrapper.additive:
            found.setdefault(f"its layers are {type(wrapper).__name__}, no sum of W x and B A x", []).append(path)
    for each in trained_copies(module):
        found.setdefault("modules or biases are trained in full", []).append(each.path)
    return [f"{what}: {enumerated(paths, 4)}" for what, paths in found.items()]
