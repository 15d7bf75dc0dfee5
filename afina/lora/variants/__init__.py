"""The variants of LoRA, one file each: LoRA itself, DoRA, VeRA, LoRA-FA.

Comes in: targets (`lora.layer.Target`) and a `LoraConfig`. Goes out: their adapted layers, and all that the rest of
Afina needs to know of them: targets and settings that fit, parameter counts, PEFT's files, sums, weight decay, LoRA+.
To add a variant, add a file here that gives `VARIANT`, an object of a class under `Variant`; what concerns a single
layer is said by its class of `LoraLayer`. Public: `VARIANTS` (the table by name), `Variant`.
"""

from afina.core.registry import Registry
from afina.lora.variants._protocol import Variant

__all__ = ["VARIANTS", "Variant"]

VARIANTS: Registry[Variant] = Registry("afina.lora.variants", "VARIANT", "variant")
