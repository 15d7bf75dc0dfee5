"""What every room stands on. Knows nothing of models, data or training.

`config`: settings and results, declared once (`Settings`, `build`, `changed`), from which flags, YAML and JSON schemas
follow. `registry`: tables that find the files of a folder by themselves, so that to add one of a kind is to add a file.
`job`, `task`, `tracker`, `updates`: what rooms that do not know each other share. `errors`, `events` (and findings),
`files` (written whole or not at all), `device`, `machine`, `world` (processes), `layers` (what a module shows of
itself).
"""
