"""Quality of data: what a check finds in rows, and cleaned and split data.

Comes in: examples, one after another (checks.py watches them as they are read). Goes out: findings with the locations
of rows (findings.py has one entry for each), and (preparation.py) examples without copies, personal data or damage, in
two splits. duplicates.py has the digests and signatures by which equal and near copies are found, signals.py what a
single text shows: language, damage, personal data. Public: `check`, `Checker`, `Check`, `prepare`,
`PrepareSettings`."""
