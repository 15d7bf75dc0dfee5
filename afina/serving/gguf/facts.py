"""What a GGUF file says of the model in it beside its weights: `general.*` and the settings of its architecture."""

from dataclasses import dataclass
from typing import Any

from afina.engine.architecture import Architecture
from afina.engine.families import GgufLayout
from afina.models.formats.gguf_rope import RopeInFile

Metadata = dict[str, Any]  # by key; str, bool, int and float as string, bool, uint32 and float32, lists as arrays
_QUANTISATION_VERSION = 2
_FRACTIONS = ("epsilon", "softcapping")


@dataclass(frozen=True)
class GgufFacts:
    """`name` of the model or adapter; what else is None is left out. `licence` is an SPDX id or a text. `base_name`,
    `base_organisation` and `base_url` are of the model that was adapted: no path, for files are given away. `template`
    is the chat template, by default the base's."""

    name: str
    licence: str | None = None
    base_name: str | None = None
    base_organisation: str | None = None
    base_url: str | None = None
    template: str | None = None
    description: str | None = None


def general(facts: GgufFacts, kind: str, file_type: str) -> Metadata:
    """`general.*` of a `kind`, model or adapter, whose matrices are mostly of `file_type`."""
    import gguf

    name = "ALL_F32" if file_type == "F32" else f"MOSTLY_{file_type}"
    found = {
        "type": kind,
        "name": facts.name,
        "description": facts.description,
        "license": facts.licence,
        "base_model.count": 1 if facts.base_name else None,
        "base_model.0.name": facts.base_name,
        "base_model.0.organization": facts.base_organisation,
        "base_model.0.repo_url": facts.base_url,
        "file_type": int(gguf.LlamaFileType[name]),
        "quantization_version": _QUANTISATION_VERSION,
    }
    return {f"general.{key}": value for key, value in found.items() if value not in (None, "")}


def hyperparameters(layout: GgufLayout, config: Any, arch: Architecture, rope: RopeInFile) -> Metadata:
    """The keys of the architecture, by the layout's table of settings."""
    settings = {key: getattr(config, name, None) for name, key in layout.settings.items()}
    settings |= {"feed_forward_length": arch.inner, "vocab_size": arch.vocabulary}  # which some leave to be reckoned
    spec = arch.specs[0]
    if "attention.head_count_kv" in settings:
        settings["attention.head_count_kv"] = spec.kv_heads
    if arch.ropes:
        settings |= {"attention.key_length": spec.head_dim, "attention.value_length": spec.head_dim}
    settings |= rope.metadata
    for key, value in settings.items():  # which a configuration may give as whole numbers
        if key.endswith(_FRACTIONS) and value is not None:
            settings[key] = float(value)
    return {f"{layout.architecture}.{key}": value for key, value in settings.items() if value is not None}
