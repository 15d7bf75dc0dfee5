"""Roles of columns where no layout is known: what is asked and what is answered, read from names and values.

Comes in: a sample of rows. Goes out: each column with what its values are like, and the likeliest reading with its
reasons and its kind of task, or none where the evidence is weak. names.py has what names say, columns.py what values
are like, relation.py how two columns hang together, `tasks/` a module for each kind of task. Nothing is read from disk.
Public: `suggest`, `Suggestion`, `unmapped` (the error that tells it)."""

from afina.data.roles.suggestion import Suggestion, suggest, unmapped

__all__ = ["Suggestion", "suggest", "unmapped"]
