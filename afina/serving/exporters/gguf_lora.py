"""The adapter alone as a GGUF file, for llama.cpp beside the base's own file: exact, also where that is quantised."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from afina.core.errors import AdapterError, InputError, VerificationFailed
from afina.core.text import command_line, shell_word
from afina.lora.config import LoraConfig
from afina.lora.injection import lora_layers
from afina.lora.layer import Target
from afina.lora.targets import described, find_targets
from afina.lora.variants import VARIANTS
from afina.lora.variants.lora import LoraLinear
from afina.models.load import Base
from afina.serving.exporters._protocol import Exporter, Form, Making, Subject, Written
from afina.serving.exporters.gguf import base_file, gguf_facts
from afina.serving.gguf import plan_model, read_adapter, write_adapter

_MERGED = "export gguf:TYPE, which holds the merged model"
_ROUNDED = 2e-3, 0.1  # what fp16 factors may change: an update, of its size, and logits, of the largest


class _GgufLora(Exporter):
    name = "gguf-lora"

    def problems(self, form: Form, subject: Subject) -> Iterator[str]:
        if not subject.task.continues_text:
            yield "GGUF files are of models that write text; export safetensors"
        elif subject.lora is None:
            yield f"weights of the base itself are trained, and no LoRA adapter; {_MERGED}"
        else:
            try:
                plan_model(subject.base, "F16")
            except InputError as error:
                yield f"{'; '.join(error.problems)}; {error.remedy}"
            for what in _left_behind(subject.base, subject.lora):
                yield f"{what}, which llama.cpp does not add to a model; {_MERGED}"

    def bytes_expected(self, form: Form, subject: Subject) -> int:
        if subject.lora is None or not subject.task.continues_text:
            return 0
        sizes = [size for target in _targets(subject.base, subject.lora) for size in target.sizes.values()]
        return sum(2 * size.experts * size.rank * (size.inputs + size.outputs) for size in sizes)

    def write(self, form: Form, making: Making) -> Written:
        name = f"{making.subject.name}-lora.gguf"
        base = making.subject.base
        write_adapter(base, making.adapter, making.folder / name, gguf_facts(making.subject), "F16")
        weights, logits = _ROUNDED
        return Written((name,), weights=weights, logits=logits, facts={"types": ["F16"]})

    @torch.no_grad()
    def read(self, written: Written, making: Making) -> Base:
        """A fresh base with the factors of the file in the place of the adapter's."""
        path, base = making.folder / written.files[0], making.reopen().base
        pairs = read_adapter(path, base)
        for layer_path, layer in lora_layers(base.model.module):
            assert isinstance(layer, LoraLinear), "problems() refuses others"
            a_RI, b_OR = pairs.pop(layer_path, (layer.lora_a, torch.zeros_like(layer.lora_b)))
            layer.set_factors(a_RI, b_OR)
            layer.scaling = 1.0  # it is in B
        if pairs:
            raise VerificationFailed(f"{path.name} adapts {next(iter(pairs))}, which the adapter does not", "report it")
        return base

    def instructions(self, form: Form, written: Written, subject: Subject) -> Iterator[str]:
        (name,), base = written.files, base_file(subject)
        model = shell_word(base)
        yield f"### {name}: llama.cpp, beside the base's own file"
        yield ""
        yield f"    llama-cli -m {model} --lora {name} --jinja -cnv"
        yield f"    llama-server -m {model} --lora {name} --jinja --port 8080"
        yield ""
        yield from _of_base(base, subject)
        yield ""
        yield "llama.cpp takes the template of the base's file; where the run's is another, give it with"
        yield "`--chat-template-file` (it is in the run's folder, adapter/chat_template.jinja)."


def _of_base(file: str, subject: Subject) -> Iterator[str]:
    """Which base `file` is, and how one comes by it."""
    weights, on_hub = subject.facts.sha256, subject.hub_base
    if Path(subject.facts.path).suffix == ".gguf":
        pulled = command_line("models", "pull", subject.facts.name)
        known = subject.facts.kind == "catalogue"
        yield f"`{file}` is the very file that was trained on (SHA-256 `{weights}`),"
        yield "so that nothing is quantised a second time. It is not in this folder:"
        yield f"`{pulled}` fetches it, and says its path." if known else "copy it here, or give its path."
        return
    name = on_hub.hub_id if on_hub else subject.base_name
    commit = f", revision={on_hub.commit!r}" if on_hub and on_hub.commit else ""
    where = name if on_hub or subject.facts.kind == "catalogue" else f"path/to/{name}"
    yield f"`{file}` is the base, {name}, as a GGUF file. It is not in this folder. Any GGUF file of the same weights"
    yield f"goes (their SHA-256, as Afina records it, is `{weights}`); Afina writes one so:"
    yield ""
    yield "    from pathlib import Path"
    yield "    from afina.models import load_base"
    yield "    from afina.serving.gguf import GgufFacts, write_model"
    yield f'    base = load_base({where!r}{commit}, precision="fp32")'
    yield "    weights = base.model.module.state_dict().items()"
    yield f'    write_model(base, weights, Path({file!r}), "F16", GgufFacts({name!r}))'


def _targets(base: Base, config: LoraConfig) -> list[Target]:
    module = base.model.module
    try:
        return described(module, find_targets(module, config, lambda error: None), config)
    except AdapterError:  # told by whoever puts the adapter into the base
        return []


def _left_behind(base: Base, config: LoraConfig) -> Iterator[str]:
    """What a file of A and B would lose of an adapter, by name."""
    if not VARIANTS[config.variant].summable:
        yield f"--lora.variant {config.variant} is more than A and B of each layer"
    if config.modules_to_save:
        named = config.modules_to_save
        yield f"modules are trained in full ({named if isinstance(named, str) else ', '.join(named)})"
    if config.trainable_tokens:
        yield "rows of the embeddings are trained (trainable_tokens)"
    if config.bias != "none":
        yield f"biases are trained (--lora.bias {config.bias})"
    module: Any = base.model.module
    head = module.get_output_embeddings()
    for target in _targets(base, config):
        if target.kind == "embedding":
            yield f"the embeddings {target.path} are adapted"
        elif target.kind == "experts":
            yield f"the experts' tensors of {target.path} are adapted"
        elif target.module is head:
            yield f"the output head {target.path} is adapted"


EXPORTER = _GgufLora()
