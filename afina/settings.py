"""All settings of a run, in one tree: what `afina train` takes as flags and as YAML."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from afina.core.config import Settings, setting
from afina.core.registry import OneOf
from afina.core.task import TaskName
from afina.core.tracker import TRACKERS
from afina.data.settings import DataSettings
from afina.lora.config import LoraConfig
from afina.models.model import Quantize
from afina.training.settings import Method, TrainingSettings


def _listed(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class RunSettings(Settings):
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
    """The model's head: causal (writes text), classify (names one of the completions' classes) or seq2seq; by default the base's."""
    method: Method = "lora"
    """What is trained: lora, or an alternative to compare with: full, head (transfer learning), last (layers), bias."""
    last_layers: int = setting(2, ge=1)
    """With method last: how many layers."""
    seed: int = setting(0, ge=0, lt=2**32)
    """Decides the sample, the split, the order of rows and the adapter's start."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the computation; auto measures once which is faster here."""
    template: Path | None = None
    """File with a chat template (Jinja) in the place of the base's own."""
    quantize: Quantize | None = None
    """Keep the frozen base in few bits, for less memory: nf4 (4 bits), int8, or keep: a GGUF file's matrices as they are."""
    track: Annotated[tuple[Annotated[str, OneOf(TRACKERS)], ...], BeforeValidator(_listed)] = ()
    """Trackers to log the run's numbers to, separated by commas; each is installed by an extra of its name."""
    device: str | None = None
    """cpu, cuda, mps; by default the best that is there."""
    threads: int | None = setting(None, ge=1)
    """Processor threads; by default one a core."""
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
        return self.out or Path("runs") / self.data.path.stem
