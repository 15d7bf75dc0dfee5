"""The trackers that `--track` knows, one file each: MLflow, TensorBoard, Trackio, Weights & Biases.

Comes in: a run's folder and settings, then its numbers step by step. Goes out: calls to the tracker's own package. To
add one is to add a file that defines `TRACKER`, a `core.tracker.Tracker`. The table is `core.tracker.TRACKERS`; the
trackers of a run are driven by `runs.tracking`. All are optional, and each is installed by an extra of its own name
(`pip install 'afina[NAME]'`).
"""
