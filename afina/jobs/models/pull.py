"""`models pull`: fetch a base model into the cache, and show what its files say."""

from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.models.show import ModelFacts, ShowModelSettings, model_facts


class PullModelSettings(ShowModelSettings):
    """The same as to show one."""


def pull(settings: PullModelSettings, listener: Listener = ignore) -> ModelFacts:
    """Raises `BaseModelError` where there is no such model, or it cannot be fetched."""
    return model_facts(settings)


JOB = Job.of(pull)
