"""Runs: one training from settings to a folder, and all that can be done with such a folder afterwards.

Comes in: `RunSettings`, or the folder of a run. Goes out: a run folder with adapter, evaluation and report; an adapted
model, opened again; lists, comparisons and findings. `assemble` puts base, data and adapter together, `training`
trains, verifies and evaluates, `folder` writes safely, `files` declares what each file holds, `facts` what an adapter
records, `opening` loads it, `history` lists and compares, `diagnosis` finds what went wrong, `tracking` and `trackers/`
log to other programs, `worker` runs jobs in processes of their own.
Public: `train_run`, `resume_run`, `open_run`,
`read_run`, `examine`, `list_runs`, `show_run`, `diff_runs`, `run_in_process`.
"""
