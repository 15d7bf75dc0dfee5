"""What a training will need: memory, seconds and disk, on this machine and on others, before anything is loaded.

Comes in: a base by its configuration (`models.skeleton`), settings, the lengths of the rows, a machine. Goes out: a
`Forecast`, and where it does not fit the flags and smaller bases that would. `workload` counts rows and
micro-batches, `expected` estimates them where the base is not here; `memory` has bytes, `seconds` time; `benchmark`
measures this machine's `speed` once, on the device of the run, and keeps it in the cache; `machines` has this machine
and others, these by the published figures of `cards`. Nothing is trained or written. Public: `forecast_training`,
`Forecast`, `Workload`, `workload_of`, `Machine`, `this_machine`, `remedies`, `refuse_what_cannot_fit`.
"""
