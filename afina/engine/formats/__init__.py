"""How numbers lie in the blocks of quantised matrices, in torch on any device: the definition of each format.

Comes in: bytes, the last dimension those of a row of whole blocks, or numbers. Goes out: the numbers in fp32, or the
bytes. Pure functions, without layers or files; `engine.blocks` has the matrices over them, and kernels read the same
bytes faster. Public: `numbers_of`, `q8_0_of` (ggml.py).
"""

from afina.engine.formats.ggml import numbers_of as numbers_of
from afina.engine.formats.ggml import q8_0_of as q8_0_of
