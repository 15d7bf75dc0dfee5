"""How A and B are initialised, one file each: kaiming, gaussian, orthogonal, pissa, olora, loftq, eva, lora_ga.

Comes in: the injected linear layers and what an init may look at (`Sources`: calibration on data, the weights before
quantisation). Goes out: the same layers with other A and B, drawn reproducibly from a seed.
To add an init, add a file here that gives `INIT`, an object of a class under `Init`, or under `LayerwiseInit` where
each layer's weight is all that it needs. Public: `INITS` (the table by name), `Init`, `LayerwiseInit`, `Needs`,
`Sources`.
"""

from afina.core.registry import Registry
from afina.lora.inits._protocol import Init, LayerwiseInit, Needs, Sources

__all__ = ["INITS", "Init", "LayerwiseInit", "Needs", "Sources"]

INITS: Registry[Init] = Registry("afina.lora.inits", "INIT", "init")
