"""What a user asks for: one file a public function, each composing the rooms below.

Comes in: settings and paths. Goes out: run folders and results.
Public, exported at the top of the package: `train`, `evaluate`, `generate`, `RunSettings`.
"""
