"""The surface: the command line, made from the registry of jobs. Parses, runs one job, shows its result. No tensors.

Words come in; results go to standard output, progress and errors to standard error, and an exit code goes out.
`cli` finds the job, `flags` makes its flags from its settings, `progress` shows what happens while it runs, and
`commands` holds a file per command that shows results; to add a command, add its job in `afina.jobs` and that file.
Public: `main`.
"""
