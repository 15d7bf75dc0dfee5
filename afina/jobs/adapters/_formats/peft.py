"""PEFT before safetensors: `adapter_model.bin`, a pickle of the tensors that are in safetensors today."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from afina.core.errors import AdapterError
from afina.jobs.adapters._formats._protocol import ForeignAdapter, ForeignFormat
from afina.lora.config import LoraConfig
from afina.lora.peft_config import read_peft
from afina.lora.peft_files import PICKLED, WEIGHTS, put_adapter
from afina.runs.opening import task_of


class _Peft(ForeignFormat):
    name = "PEFT"
    files = (WEIGHTS, PICKLED)

    def claims(self, path: Path, names: Collection[str]) -> bool:
        return any(name.startswith("base_model.") for name in names)

    def read(self, state: dict[str, Tensor], path: Path, alpha: float | None, parts: Sequence[bool]) -> ForeignAdapter:
        if path.suffix == ".safetensors":
            raise AdapterError(f"{path} is in PEFT's format already", "use it as it is")
        folder = path.parent
        raw, _ = read_peft(folder)

        def put_in(module: Any) -> LoraConfig:
            return put_adapter(module, folder, state)

        return ForeignAdapter(put_in, raw.get("base_model_name_or_path"), task_of(raw))


FORMAT = _Peft()
