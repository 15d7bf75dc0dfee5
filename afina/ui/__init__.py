"""The surface: the command line. Parses, calls one public function of `afina.jobs`, prints. No tensors.

Comes in: words. Goes out: results on standard output, progress and errors on standard error, an exit code.
Public: `main`.
"""
