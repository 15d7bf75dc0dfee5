"""What computes on cards: the operations in Triton, for those that it compiles for (CUDA, ROCm), and attention on the
pack itself by torch's flash attention.

by_triton.py launches the kernels, forward and backward; each kernel computes what its twin beside this folder does in
torch, with sums in fp32. A program takes one row, so that inputs may be strided by row, and gradients lie as their
tensors do. Shapes that decide what is compiled are `tl.constexpr`.

Public: `TYPES`. Importing by_triton.py needs Triton, which torch's builds for cards bring.
"""

TYPES = ("cuda",)  # torch's word for ROCm's cards, too
