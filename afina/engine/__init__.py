"""How a frozen decoder computes: packed rows in, hidden states and logits out.

Comes in: an `Architecture`, tensors by name, token ids in packed segments. Goes out: hidden states, logits, losses,
gradients for whatever joins the products. Knows no names of models, no files, no tokenizer.
"""
