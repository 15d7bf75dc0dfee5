"""The trackers that `--track` knows, one file each: MLflow, TensorBoard, Trackio, Weights & Biases.

Comes in: a run's folder and settings, then its numbers step by step. Goes out: calls to the tracker's own
package, or files. To add one is to add a file that defines `TRACKER`, a `core.tracker.Tracker`; the table,
`core.tracker.TRACKERS`, finds it. `runs.tracking` drives the trackers of a run. A tracker's package is optional, and is
installed by an extra of its name (`pip install 'afina[NAME]'`).
"""
