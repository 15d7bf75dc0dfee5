"""Step 3, the mathematics: LoRA on any `nn.Module`.

Comes in: a model and a `LoraConfig`, or an adapter's folder. Goes out: the model with trainable low-rank layers,
adapter files in PEFT's format, a merged copy. Needs torch, safetensors and `afina.core` only: no data, no tokenizer, no
loop. `variants/` has a file per form of the update, `inits/` one per initialisation of A and B; `targets` finds the
layers, `injection` wraps them, `modules_to_save` and `trainable_tokens` train what is not low-rank, `peft_config` and
`peft_files` read and write, `counting` counts without building, `arithmetic` combines adapters on disk, `adapters`
switches them.
Public: `LoraConfig`, `inject`, `find_targets`, `lora_layers`, `disabled`, `trainable_parameters`, `adapter_state`,
`save_adapter`, `load_adapter`, `read_config`, `merge`, `Adapters`, `combine`, `rerank`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.lora.adapters import Adapters as Adapters
    from afina.lora.arithmetic import combine as combine
    from afina.lora.arithmetic import rerank as rerank
    from afina.lora.config import LoraConfig as LoraConfig
    from afina.lora.injection import disabled as disabled
    from afina.lora.injection import inject as inject
    from afina.lora.injection import lora_layers as lora_layers
    from afina.lora.injection import trainable_parameters as trainable_parameters
    from afina.lora.merging import merge as merge
    from afina.lora.peft_config import read_config as read_config
    from afina.lora.peft_files import adapter_state as adapter_state
    from afina.lora.peft_files import load_adapter as load_adapter
    from afina.lora.peft_files import save_adapter as save_adapter
    from afina.lora.targets import find_targets as find_targets

__getattr__, __all__ = exports(
    __name__,
    {
        "Adapters": "afina.lora.adapters",
        "LoraConfig": "afina.lora.config",
        "adapter_state": "afina.lora.peft_files",
        "combine": "afina.lora.arithmetic",
        "disabled": "afina.lora.injection",
        "find_targets": "afina.lora.targets",
        "inject": "afina.lora.injection",
        "load_adapter": "afina.lora.peft_files",
        "lora_layers": "afina.lora.injection",
        "merge": "afina.lora.merging",
        "read_config": "afina.lora.peft_config",
        "rerank": "afina.lora.arithmetic",
        "save_adapter": "afina.lora.peft_files",
        "trainable_parameters": "afina.lora.injection",
    },
)
