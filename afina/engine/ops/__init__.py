"""The decoder's operations between its matrix products, once for each way to compute them.

Comes in: packed activations (T tokens, rows one after another without padding). Goes out: the operation's result,
differentiable. `Ops` (by_torch.py) is the protocol and, in torch, on any device, the definition of each operation,
whose longer ones have a file each; by_cpp.py has them for the processor, cards/by_triton.py for cards, and fused.py
what these two share. Each implementation is a subclass in a file of its own, with gradients derived by hand, and
`chosen` (choice.py) gives a decoder its one: to add another is to add a file and to name it there.

Public: `Ops`, `TORCH`, `chosen`, `why_torch`; `Segments` (segments.py); `ACTIVATIONS`, `GATES` (activations.py);
`AttentionSpec`, `Rotation` (rotary.py); `Continued`, `Past` (attention.py); `summed_cross_entropy`, `cross_entropies`,
`chunk_rows`, `CHUNK`, `padded` (losses.py).
"""

from afina.engine.ops.activations import ACTIVATIONS as ACTIVATIONS
from afina.engine.ops.activations import GATES as GATES
from afina.engine.ops.attention import Continued as Continued
from afina.engine.ops.attention import Past as Past
from afina.engine.ops.by_torch import TORCH as TORCH
from afina.engine.ops.by_torch import Ops as Ops
from afina.engine.ops.choice import chosen as chosen
from afina.engine.ops.choice import why_torch as why_torch
from afina.engine.ops.losses import CHUNK as CHUNK
from afina.engine.ops.losses import chunk_rows as chunk_rows
from afina.engine.ops.losses import cross_entropies as cross_entropies
from afina.engine.ops.losses import padded as padded
from afina.engine.ops.losses import summed_cross_entropy as summed_cross_entropy
from afina.engine.ops.rotary import NO_NORM as NO_NORM
from afina.engine.ops.rotary import NORM_ALL_HEADS as NORM_ALL_HEADS
from afina.engine.ops.rotary import NORM_EACH_HEAD as NORM_EACH_HEAD
from afina.engine.ops.rotary import AttentionSpec as AttentionSpec
from afina.engine.ops.rotary import Rotation as Rotation
from afina.engine.ops.segments import Segments as Segments
