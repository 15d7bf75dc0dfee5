"""What leaves: files in the formats of other programs, and the engine behind an address.

Comes in: a base with what was trained on it. Goes out: files that were read back and compared, and answers that name
by hash the weights that wrote them.
Public: `Service` (what the routes ask of the engine).
"""
