"""`data`: a file of examples: checked, shown as the model sees it, cleaned and split.

A file of examples comes in; findings, tokens, or a new folder of training and test rows go out. Nothing is trained.
One job a file: `check`, `show`, `prepare`; the work itself is `afina.data.quality`.
"""
