"""Reads tensors of what torch.save wrote, a pickle in a zip: in a child, since unpacking it may take any time and
memory, and hands them on as safetensors."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from afina.core.errors import AdapterError
from afina.core.files import check_regular, write_tensors
from afina.core.limits import UNPICKLED_BYTES, UNPICKLED_RATIO, UNPICKLED_SECONDS, UNPICKLED_SPEED
from afina.core.limits.process import Failed, TooMuch, in_child
from afina.lora.peft_files import tensors_in

_ADVICE = (
    "give an adapter's own file: .safetensors, or what torch.save wrote of tensors alone (any other pickle can run "
    "code)"
)


def unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors, by name; nothing that the file holds is run. Raises `AdapterError`."""
    check_regular(path, AdapterError)
    size = path.stat().st_size
    seconds, most = UNPICKLED_SECONDS + size / UNPICKLED_SPEED, UNPICKLED_BYTES + UNPICKLED_RATIO * size
    with TemporaryDirectory(prefix="afina-") as folder:
        plain = Path(folder) / "adapter.safetensors"
        try:
            count = in_child(lambda: _rewrite(path, plain), seconds, most)
        except TooMuch as error:
            raise AdapterError(f"{path} takes more than {error} to read", _ADVICE) from error
        except Failed as error:
            if error.remedy:
                raise AdapterError(str(error), error.remedy) from error
            raise AdapterError(f"{path} cannot be read as plain tensors ({error})", _ADVICE) from error
        return tensors_in(plain) if count else {}  # a safetensors file of nothing cannot be read


def _rewrite(path: Path, plain: Path) -> int:
    torch.set_num_threads(1)  # a copy of a process has none but its own
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(name, str) and _plain(value) for name, value in state.items()):
        raise AdapterError(f"{path} contains no plain tensors by name", "give the file of the adapter's state")
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_tensors(plain, tensors, {})
    return len(tensors)


def _plain(value: Any) -> bool:
    """A matrix or vector of real numbers, in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_complex()
