"""`models`: base models: the catalogue, facts, downloads, what is in the cache.

Names come in (of the catalogue, of the hub, folders, GGUF files); facts go out, and files into the cache.
One job a file: `list`, `show`, `pull`, `cache`.
"""
