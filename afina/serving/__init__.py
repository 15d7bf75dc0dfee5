"""What leaves: files in the formats of other programs, and the engine behind an address.

Comes in: a base with what was trained on it. Goes out: files that were read back and compared, and answers that name
by hash the weights that wrote them.
service.py says what the routes (http/) ask of what is behind them; local.py is that: a registry of adapters
(registry.py, adapters.py, probe.py) before the one thread that computes (engine.py), counted in metrics.py. client.py
asks such a server. gguf/ writes files for llama.cpp. Knows no command and no settings of one.
Public: `Service` (what the routes ask of the engine), `LocalService`, `Client`.
"""
