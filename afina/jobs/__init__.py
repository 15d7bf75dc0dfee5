"""What a user can ask for: one file a job, one public function a file, each composing the rooms below.

Settings go in, a result comes out; both are declared models, from which the command line is made, and schemas.
A folder (`adapters`, `data`, `models`, `runs`) holds the jobs on things of one kind. A job's file begins with its name
and help, and ends with its `JOB`; to add one is to add a file. `JOBS` lists them all, importing none.
Public: `JOBS`; the functions and their settings are exported at the top of the package.
"""

from afina.core.job import Jobs

JOBS = Jobs("afina.jobs")
