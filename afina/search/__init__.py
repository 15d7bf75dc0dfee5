"""Many trainings for one answer: which method, which settings, which base.

Comes in: settings, a folder. Goes out: results in that folder (files, a page), and objects that say what follows.
`trial` runs short trainings on a base that is loaded once; `study` is the search of `tune` over them (Optuna), with
`ray_workers` for clusters and `tuning` for what it found; `method_runs` are the runs of `compare`, `comparison` what
they show; `base_trial` tries one base for `choose`, `candidates` ranks them; `few_shot` puts examples before prompts;
`resumable` is the folder in which the same command resumes, `workers` searches in several processes. Public:
`TrialRunner`, `Comparison`, `Tuning`, `BaseTrial`, `search_trials`, `search_rate`, `try_base`, `after_examples`.
"""
