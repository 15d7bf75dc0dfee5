"""The search's workers as trials of Ray Tune, on the machines of its cluster.

They share the study's file, so its folder must be on a file system that all machines see.
"""

import os
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from afina.core.errors import RunFailed, counted
from afina.core.events import ignore
from afina.search.study import search_trials


def search_on_ray(arguments: dict[str, Any], workers: int) -> None:
    """Runs `workers` searches until the budget is used up, with the processors that the cluster has, in equal parts.

    Raises `RunFailed` where a worker fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's own reports of its use
    import ray
    from ray import tune

    # Ray puts the current folder on the path of its processes, before all else: an empty one, not that of the data.
    with tempfile.TemporaryDirectory() as empty, chdir(empty):
        ray.init(ignore_reinit_error=True, include_dashboard=False)
    share = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    folder = str(Path(arguments["folder"]).absolute())
    own = arguments | {"folder": folder, "settings": arguments["settings"] | {"threads": share}}

    def search(config: dict[str, Any]) -> None:
        search_trials(**own, phases=["trials"], worker=config["worker"], listener=ignore)

    tuner = tune.Tuner(
        tune.with_resources(search, {"cpu": share}),
        param_space={"worker": tune.grid_search(list(range(workers)))},
        run_config=tune.RunConfig(storage_path=str(Path(folder) / "ray"), verbose=0),
    )
    failed = tuner.fit().errors
    if failed:
        raise RunFailed(
            f"{len(failed)} of {counted(workers, 'worker')} failed: {str(failed[0]).strip().splitlines()[-1]}"
        )
