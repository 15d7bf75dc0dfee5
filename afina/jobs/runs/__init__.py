"""`runs`: runs listed, shown, compared, and the forms in which they can be exported.

Folders that `afina train` wrote come in; facts about them go out. Nothing is written.
One job a file: `list`, `show`, `diff`; the reading itself is `afina.runs.history`.
"""
