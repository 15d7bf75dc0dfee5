"""`adapters`: adapters listed, shown, compared, combined, cut to a lower rank, merged, converted.

Folders of runs or adapters come in; facts about them go out, or a new adapter (or model) in the folder `out`.
One job a file: `list`, `show`, `diff`, `combine`, `rerank`, `merge`, `convert`.
"""
