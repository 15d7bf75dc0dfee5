"""The decoder's operations between its matrix products: one file per operation, each with its backward pass.

Comes in: packed activations (T tokens, rows one after another without padding), and `fused`, the compiled kernels, or
None. Goes out: the operation's result, differentiable. Each file holds the same computation twice: in torch, on any
device, which is its definition, and as an autograd function over a fused kernel, with a gradient derived by hand. The
public function of the file chooses between them; a third implementation goes beside these two.

Public: `Segments` (segments.py); `rms_norm`, `add_rms_norm` (norms.py); `ACTIVATIONS`, `GATES`, `gated`
(activations.py); `AttentionSpec`, `Rotation`, `rotate` (rotary.py); `attend`, `attend_cached`, `dense_attention`,
`Past` (attention.py); `summed_cross_entropy`, `cross_entropies`, `CHUNK`, `ROUND` (losses.py).
"""

from afina.engine.ops.activations import ACTIVATIONS as ACTIVATIONS
from afina.engine.ops.activations import GATES as GATES
from afina.engine.ops.activations import gated as gated
from afina.engine.ops.attention import Past as Past
from afina.engine.ops.attention import attend as attend
from afina.engine.ops.attention import attend_cached as attend_cached
from afina.engine.ops.attention import dense_attention as dense_attention
from afina.engine.ops.losses import CHUNK as CHUNK
from afina.engine.ops.losses import ROUND as ROUND
from afina.engine.ops.losses import cross_entropies as cross_entropies
from afina.engine.ops.losses import summed_cross_entropy as summed_cross_entropy
from afina.engine.ops.norms import add_rms_norm as add_rms_norm
from afina.engine.ops.norms import rms_norm as rms_norm
from afina.engine.ops.rotary import NO_NORM as NO_NORM
from afina.engine.ops.rotary import NORM_ALL_HEADS as NORM_ALL_HEADS
from afina.engine.ops.rotary import NORM_EACH_HEAD as NORM_EACH_HEAD
from afina.engine.ops.rotary import AttentionSpec as AttentionSpec
from afina.engine.ops.rotary import Rotation as Rotation
from afina.engine.ops.rotary import rotate as rotate
from afina.engine.ops.segments import Segments as Segments
