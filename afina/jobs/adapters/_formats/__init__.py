"""The formats of adapters that `adapters convert` reads, a file each; a file gives `FORMAT`.

Comes in: the tensors of a file by their names, and the settings. Goes out: a `ForeignAdapter`, which is put into a
base's module. To add a format is to add a file; what several share is in `_updates.py`. Public: `FORMATS`.
"""

from afina.core.registry import Registry
from afina.jobs.adapters._formats._protocol import ForeignAdapter as ForeignAdapter
from afina.jobs.adapters._formats._protocol import ForeignFormat as ForeignFormat

FORMATS: Registry[ForeignFormat] = Registry("afina.jobs.adapters._formats", "FORMAT", "format of adapters")
