"""The alternatives to LoRA, as configurations of what is trained: everything, the head, the last layers, the biases.

Each trains copies of the base's own modules or biases, in the same loop, and is saved and loaded like an adapter.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from afina.core.errors import SettingsError
from afina.lora.config import LoraConfig
from afina.lora.targets import layer_number
from afina.training.settings import Method

# The methods that take the learning rate of full fine-tuning as it is; few or new weights learn as fast as LoRA's.
RATE_AS_FULL = ("full", "last")


def baseline(module: nn.Module, method: Method, last_layers: int, heads: Sequence[str] = ()) -> LoraConfig:
    """What `method` trains, as a configuration without low-rank layers.

    full: everything. head: the output head over frozen features (transfer learning); of a model that writes text, the
    final norm too, and the head untied from the token embeddings. last: the last `last_layers` layers and what follows
    them. bias: every bias (BitFit, Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199). `heads` are the paths of a
    classifier's new modules, which every method trains. Raises `SettingsError` where the base has too few layers, or no
    biases.
    """
    saved: list[str] = []
    if method == "full":
        saved = [path for path, child in module.named_children() if next(child.parameters(), None) is not None]
    if method == "head":
        saved = list(heads) or [*_after_layers(module), *_heads(module)]
    if method == "last" and last_layers > len(_layers(module)):
        raise SettingsError(f"--last-layers {last_layers}: this base has {len(_layers(module))}", "give fewer")
    if method == "last":
        saved = [*_layers(module)[-last_layers:], *_after_layers(module), *heads]
    if method == "bias":
        saved = list(heads)
    if method == "bias" and not any(name.endswith("bias") for name, _ in module.named_parameters()):
        raise SettingsError("--method bias: this base has no biases", "choose another method")
    return LoraConfig(
        target_modules=(), modules_to_save=tuple(dict.fromkeys(saved)), bias="all" if method == "bias" else "none"
    )


def _layers(module: nn.Module) -> list[str]:
    """The paths of the repeated layers, in order."""
    return [path for path, _ in module.named_modules() if path.rsplit(".", 1)[-1].isdigit() and path.count(".") < 4]


def _heads(module: Any) -> list[str]:
    head = module.get_output_embeddings()
    return [] if head is None else [path for path, each in module.named_modules() if each is head]


def _after_layers(module: Any) -> list[str]:
    """The modules between the repeated layers and the head: the final norm, where there is one."""
    last = max(i for i, (path, _) in enumerate(module.named_modules()) if layer_number(path) is not None)
    heads = _heads(module)
    after = [
        path for path, each in list(module.named_modules())[last + 1 :] if next(each.parameters(), None) is not None
    ]
    return [path for path in after if path not in heads]
