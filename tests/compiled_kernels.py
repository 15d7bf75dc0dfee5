"""Compiles every kernel of afina/engine/ops/cards for cards that need not be there."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from afina.engine.ops.cards import activations, losses, norms, rotary, unpack

CARDS = [  # a T4, an H100 and an MI300, each with the 16-bit numbers that it is given
    (GPUTarget("cuda", 75, 32), "*fp16"), (GPUTarget("cuda", 90, 32), "*bf16"),
    (GPUTarget("hip", "gfx942", 64), "*bf16"),
]  # fmt: skip
NORM = {"BLOCK": 4096}
ROTARY = {"HEADS": 32, "PAIRS": 64, "REST": 1, "RESTS": False}
POINTERS = {
    "weight": "*fp32", "wq": "*fp32", "wk": "*fp32", "rstd": "*fp32", "cosines": "*fp32", "sines": "*fp32",
    "losses": "*fp32", "levels": "*fp32", "rows": "*i32", "labels": "*i64", "data": "*u8",
}  # fmt: skip
NUMBERS = {"eps": "fp32"} | dict.fromkeys(("n", "words", "count", "row_bytes", "H", "HKV", "D", "pairs"), "i32")
KERNELS = [
    (norms.rms_forward, NORM | {"SUM": True}), (norms.rms_backward, NORM | {"USED": True}),
    (activations.gated_forward, {"GELU": True, "BLOCK": 1024}),
    (activations.gated_backward, {"GELU": False, "BLOCK": 1024}),
    (losses.cross_entropy, {"GRADIENT": True, "BLOCK": 8192}),
    (rotary.rotary_forward, ROTARY | {"NORM": 0}), (rotary.rotary_backward, ROTARY | {"NORM": 0}),
    (rotary.rotary_forward, ROTARY | {"NORM": 2, "REST": 16, "RESTS": True}),
    (rotary.rotary_backward, ROTARY | {"NORM": 1, "REST": 16, "RESTS": True}),
    (unpack.unpack_nf4, {"BLOCKS": 16}),
    *((unpack.unpack_blocks, {"KIND": kind, "NUMBERS": 32, "BYTES": 18, "BLOCKS": 32}) for kind in (2, 3, 6, 7, 8)),
    *((unpack.unpack_blocks, {"KIND": kind, "NUMBERS": 256, "BYTES": 144, "BLOCKS": 4}) for kind in range(10, 15)),
]  # fmt: skip


def type_of(name: str, numbers: str) -> str:
    return POINTERS.get(name) or NUMBERS.get(name) or ("i32" if name.endswith("stride") else numbers)


for kernel, constants in KERNELS:
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    for card, numbers in CARDS[: 1 if kernel is unpack.unpack_blocks else None]:
        signature = {name: "constexpr" if name in constants else type_of(name, numbers) for name in kernel.arg_names}
        triton.compile(ASTSource(kernel, signature, constexprs), target=card)
