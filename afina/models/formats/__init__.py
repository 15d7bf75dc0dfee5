"""The formats in which a base model's weights lie on disk.

Comes in: the path of a file or folder. Goes out: a configuration as transformers parses it, and weights by
transformers' names, each in the dtype that was asked for, or quantised as it is read. Raises `BaseModelError` for
files that are damaged.

Public: `GGUF` (gguf.py: metadata and tensors of a file); `read_config`, `read_weights` (gguf_models.py: the model in
it); `safetensors_files` (`read_weights`, `check_header`, `stored_dtype`: a folder in transformers' format);
`check_numbers` (checks.py: weights of any format).
"""
