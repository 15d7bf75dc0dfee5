"""How A and B are initialised, one file each: kaiming, gaussian, orthogonal, pissa, olora, loftq, eva, lora_ga.

Comes in: the injected linear layers and what an init may look at (`_protocol.Sources`: calibration on data, the weights
before quantisation). Goes out: the same layers with other A and B, drawn reproducibly from a seed.
To add an init, add a file here that gives `INIT`, an object of a class under `_protocol.Init`, or of
`_protocol.LayerwiseInit` where each layer's weight is all that it needs. Public: `INITS`, the table by name.
"""

from typing import TYPE_CHECKING

from afina.core.registry import Registry

if TYPE_CHECKING:
    from afina.lora.inits._protocol import Init

INITS: "Registry[Init]" = Registry("afina.lora.inits", "INIT", "init")
