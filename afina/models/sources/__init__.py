"""Where base models come from: the catalogue, packages of the Python index, the Hugging Face hub, folders and files.

Comes in: a base's name and the cache's folder. Goes out: a `Source`, a path on this disk with a revision and a digest;
nothing is downloaded unless it was asked for and is absent, and nothing is used whose hash is wrong. Raises
`BaseModelError`.

Public: `Source`, `locate`, `is_local`, `hub_id_of` (source.py); `Entry`, `known_models`, `select`, `licences`
(catalogue.py, over catalogue.yaml); `package_path`, `fetch_package`, `damaged_files` (packages.py); `fetch_model`,
`fetch_headers` (hub.py); `CachedItem`, `list_cached`, `remove_cached` (caches.py).
"""
