"""All settings of a run, in one tree: what `afina train` takes as flags and as YAML, and what it makes of them.

`resolve` fills in what a user left open. It looks at the settings and at the declared `Facts` alone, so that training,
forecasts and searches do the same; the rules themselves stand in the rooms that each part of the result is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from afina.core.config import LISTED, Settings, changed, merge, nest, setting
from afina.core.device import Compute, Precision
from afina.core.errors import SettingsError
from afina.core.registry import OneOf
from afina.core.task import Task, TaskName
from afina.core.tracker import TRACKERS
from afina.data.layouts import Kind, Layout
from afina.data.settings import DataSettings
from afina.lora.config import LoraConfig
from afina.models.model import Quantize
from afina.models.settings import BaseChoice
from afina.training.plan import Plan, PlanFacts, make_plan
from afina.training.settings import Method, TrainingSettings


class RunSettings(Settings):
    in_file: ClassVar[bool] = True

    base: str = "starter"
    """Base model: a name of `afina models list`, a hub id (owner/model), a folder or a .gguf file."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    out: Path | None = None
    """Folder of the run; by default runs/NAME-OF-THE-DATA."""
    overwrite: bool = False
    """Replace the run that is in the folder already."""
    adapter: Path | None = None
    """Run folder whose adapter is trained further, instead of a new one."""
    force: bool = False
    """Take the adapter of --adapter even where it was made for another base."""
    task: TaskName | None = None
    """The model's head: causal (writes text), classify (names one of the completions' classes) or seq2seq; by default
    the base's.
    """
    method: Method = "lora"
    """What is trained: lora, or an alternative to compare with: full, head (transfer learning), last (layers), bias."""
    last_layers: int = setting(2, ge=1)
    """With method last: how many layers."""
    seed: int = setting(0, ge=0, lt=2**32)
    """Decides the sample, the split, the order of rows and the adapter's initial weights."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the computation; auto takes the 16 bits that a card was made for, and measures once which is
    faster on the processor (where fp16 is slow)."""
    tf32: bool = False
    """On a card, products of fp32 may round their factors to 10 bits, several times as fast; off, since whoever asks
    for fp32 wants its bits, and bf16 is faster still."""
    template: Path | None = None
    """File with a chat template (Jinja) in the place of the base's own."""
    quantize: Quantize | None = None
    """Quantise the frozen base, for less memory: nf4 (4 bits), int8, or keep: a GGUF file's matrices as they are."""
    track: Annotated[tuple[Annotated[str, OneOf(TRACKERS)], ...], LISTED] = ()
    """Trackers to log the run's numbers to, separated by commas; each is installed by an extra of its name."""
    export: Annotated[tuple[str, ...], LISTED] = setting((), metavar="FORM,FORM")
    """After training, write the model for other programs into the run's folder `export` (see `afina export`)."""
    device: str | None = None
    """cpu, cuda (of several cards cuda:0, cuda:1 …), mps; by default the best that is there."""
    threads: int | None = setting(None, ge=1)
    """Processor threads; by default one per core."""
    allow_swap: bool = False
    """Train even where the forecast is more memory than is free."""
    cache_dir: Path | None = None
    """Where downloaded models are kept; by default $AFINA_CACHE, else the user's cache folder."""
    data: DataSettings
    train: TrainingSettings = TrainingSettings()
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _read(self) -> "RunSettings":
        if self.last_layers != 2 and self.method != "last":
            raise ValueError("last_layers is read with method 'last' only")
        if self.force and not self.adapter:
            raise ValueError("force is read with adapter only")
        return self

    @property
    def data_seed(self) -> int:
        """What decides the sample and the split."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / self.data.name


@dataclass(frozen=True)
class Facts:
    """What is found where a run begins, and its settings do not say.

    `base` is the name by which the base is found again, `revision` the commit of a hub's; `heads` are the paths of
    what is new in it. `trained` is the configuration that the method or the adapter trained further brings, where
    `lora` does not say what is trained; `quantize` is how the base was kept when that adapter was trained.
    `lengths` are those of the training rows in tokens, of which `labelled` have a loss on average,
    `activation_bytes` what the backward pass keeps per token, `free_bytes` what is free for activations. `files`
    are the absolute paths of the files that settings name, by dotted path.
    """

    task: Task
    lengths: Sequence[int]
    labelled: float
    hidden_size: int
    activation_bytes: int
    free_bytes: int
    precision: Precision
    precision_reason: str
    threads: int
    base: str
    revision: str | None = None
    heads: tuple[str, ...] = ()
    trained: LoraConfig | None = None
    quantize: Quantize | None = None
    kind: Kind | None = None
    layout: Layout | None = None
    encoding: str | None = None
    files: dict[str, Path] = field(default_factory=dict)


class Resolved(Settings):
    """The settings of a run with nothing left open, a part for each room; and why each open one was chosen as it is."""

    asked: RunSettings
    base: BaseChoice
    compute: Compute
    data: DataSettings
    adapter: LoraConfig
    plan: Plan
    reasons: tuple[str, ...]
    files: dict[str, Path]

    @property
    def settings(self) -> RunSettings:
        """The same as settings: those that resolve to this again."""
        return changed(
            self.asked,
            {
                "base": self.base.name,
                "revision": self.base.revision,
                "quantize": self.base.quantize,
                "precision": self.compute.precision,
                "threads": self.compute.threads,
                "data": self.data.model_dump(),
                "lora": self.adapter.model_dump(),
                **{f"train.{name}": value for name, value in self.plan.settings().items()},
            },
        )

    def config(self) -> dict[str, Any]:
        """What `config.yaml` holds: settings that mean the same in any folder, and can be given to any."""
        dumped = self.settings.model_dump(mode="json", exclude={"out", "overwrite"})
        return merge(dumped, nest({path: str(file) for path, file in self.files.items()}))


def adapter_config(settings: RunSettings, heads: Sequence[str], trained: LoraConfig | None) -> LoraConfig:
    """What is trained, as the configuration of an adapter: `trained` where the method or an adapter brings it, else a
    new adapter, with the `heads` trained in full. Raises `SettingsError` where `lora` says otherwise.
    """
    given = settings.lora
    if trained is None:
        return given.saving(heads)
    if settings.method != "lora" and (settings.adapter or given not in (LoraConfig(), trained)):
        raise SettingsError(f"--method {settings.method} trains no LoRA adapter", "leave --lora.* and --adapter out")
    if given not in (LoraConfig(), trained):
        raise SettingsError(
            f"--adapter {settings.adapter} brings its own LoRA settings (rank {trained.rank}), "
            "and --lora.* gives others",
            "leave the --lora.* settings out",
        )
    return trained


def without_adapter(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run as `model_dump` has them, without what is for adapters only and other methods refuse."""
    train = {name: value for name, value in values["train"].items() if name not in ("optimizer", "lora_plus_ratio")}
    return values | {"lora": {}, "train": train}


def resolve(settings: RunSettings, facts: Facts) -> Resolved:
    """Fills in what `settings` leave open: what a user gave is kept, the rest follows from `facts` by rule.

    It reads nothing else and changes nothing. Raises `SettingsError` where settings and facts do not go together.
    """
    rules = PlanFacts(
        facts.lengths,
        facts.labelled,
        facts.hidden_size,
        facts.task,
        facts.activation_bytes,
        facts.free_bytes,
    )
    plan, reasons = make_plan(settings.train, rules, settings.seed, settings.method)
    return Resolved(
        asked=settings,
        base=BaseChoice(
            name=facts.base,
            revision=facts.revision or settings.revision,
            quantize=settings.quantize or facts.quantize,
        ),
        compute=Compute(device=settings.device, precision=facts.precision, threads=settings.threads or facts.threads),
        data=settings.data.resolved(facts.kind, facts.layout, facts.encoding),
        adapter=adapter_config(settings, facts.heads, facts.trained),
        plan=plan,
        reasons=(f"{facts.precision} for the base: {facts.precision_reason}", *reasons),
        files=facts.files,
    )
