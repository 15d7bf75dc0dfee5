"""The formats in which a base model's weights lie on disk.

Comes in: the path of a file or folder. Goes out: a configuration as transformers parses it, and weights by
transformers' names, each in the dtype that was asked for, or quantised as it is read. Raises `BaseModelError` for
files that are damaged.

Public: `GGUF` (gguf.py: metadata and tensors of a file); `read_config`, `read_weights` (gguf_models.py: the model in
it; `names_in_file`, `stored_as`: what its tensors are called, and how they lie); `read_rope`, `rope_in_file`
(gguf_rope.py); `PRE_TOKENIZERS` (pre_tokenizers.py: how texts are parted, by GGUF's names); `safetensors_files`
(`read_weights`, `check_header`, `stored_dtype`: a folder in transformers' format);
`check_numbers` (checks.py: weights of any format).
"""
