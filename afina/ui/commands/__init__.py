"""One file a command: `flags(parser)` declares what it takes, `run(options)` does it and gives the exit code."""
