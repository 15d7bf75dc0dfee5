"""The variants of LoRA, one file each: LoRA itself, DoRA, VeRA, LoRA-FA.

Comes in: targets (`lora.layer.Target`) and a `LoraConfig`. Goes out: their adapted layers, and all that the rest of
Afina needs to know of them: which targets and settings fit, numbers to train, PEFT's files, sums, weight decay.
To add a variant, add a file here that gives `VARIANT`, an object of a class under `_protocol.Variant`; what concerns one
layer is said by its `LoraLayer`. Public: `VARIANTS`, the table by name.
"""

from typing import TYPE_CHECKING

from afina.core.registry import Registry

if TYPE_CHECKING:
    from afina.lora.variants._protocol import Variant

VARIANTS: "Registry[Variant]" = Registry("afina.lora.variants", "VARIANT", "variant")
