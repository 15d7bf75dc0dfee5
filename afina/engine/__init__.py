"""How a frozen decoder computes: packed rows in, hidden states and logits out.

Comes in: an `Architecture`, tensors by name, token ids in packed segments. Goes out: hidden states, logits, losses, and
gradients for adapters that wrap its linear layers. Knows no names of models, no files, no tokenizer.

Public: `Decoder` (decoder.py, over layers.py); `Architecture` (architecture.py); `architecture_of`, `FAMILIES`
(families/: one file per model family); the operations (ops/: one file per operation) and their kernels (kernels.py
over cpp/); `JoinedLinear` (joined.py: one product for layers of one input, with adapters by low_rank.py and weights by
joined_weights.py); `Blocks`, `BlockLinear`, `quantise_linears` (blocks.py: quantised weights); `RowUpdates` (mixed.py:
rows of several adapters in one pass); `DecoderSequences` (sequences.py: texts that are being generated, over the
`Cache` of kv_cache.py and the recorded steps of tape.py).
"""
