"""Cross-entropy in the place of the logits. A program is a row: it reads its logits once for their log Σ exp, and where
the gradient is wanted once more."""

import triton
import triton.language as tl


@triton.jit
def cross_entropy(logits, stride, labels, losses, words, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    """The logits become softmax − onehot where GRADIENT; losses are −log p(label), NaN where a label is no word."""
    row = tl.program_id(0).to(tl.int64)
    own = logits + row * stride
    label = tl.load(labels + row)
    peak = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    of_label = tl.full((), 0.0, tl.float32)
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(own + at, mask=at < words, other=float("-inf")).to(tl.float32)
        # Not by its address: whatever a label is, nothing outside the row is read.
        of_label += tl.sum(tl.where(at == label, x, 0.0), 0)
        larger = tl.maximum(peak, tl.max(x, 0))
        total = total * tl.exp(peak - larger) + tl.sum(tl.exp(x - larger), 0)
        peak = larger
    lse = peak + tl.log(total)
    known = (label >= 0) & (label < words)
    tl.store(losses + row, tl.where(known, lse - of_label, float("nan")))
    if GRADIENT:
        for start in range(0, words, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(own + at, mask=at < words, other=float("-inf")).to(tl.float32)
            p = tl.exp(x - lse) - tl.where(at == label, 1.0, 0.0)
            tl.store(own + at, p.to(logits.dtype.element_ty), mask=at < words)
