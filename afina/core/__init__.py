"""What every room stands on: settings, errors, atomic files, device and dtype, and the stream of events.

Comes in: plain values, paths. Goes out: validated settings, files that are whole, a device.
Knows nothing of models. Public: `config` (Settings, build), `errors`, `files`, `device`, `events`.
"""
