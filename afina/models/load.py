"""One call from a name to a frozen model that is ready to adapt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from afina.core.device import PRECISIONS, cache_folder, pick_device, pick_dtype
from afina.core.errors import BaseModelError, SettingsError, counted
from afina.core.process.neighbours import share_the_processor
from afina.core.task import SEQ2SEQ, Task, TaskName, task_named
from afina.engine import kernels, ops
from afina.engine.blocks import parameter_count, quantise_linears
from afina.engine.decoder import Decoder
from afina.engine.kernels import Kernels
from afina.models import tokenizer
from afina.models.causal import DecoderModel, TransformersModel
from afina.models.encoders import ClassifierModel, Seq2SeqModel
from afina.models.formats.number_formats import check_number_formats, unusual_formats
from afina.models.model import Answerer, Quantize, Writer
from afina.models.reading import chat_tokenizer, read_causal
from afina.models.skeleton import (
    build_skeleton,
    check_fits,
    config_of,
    context_length,
    context_of,
    heads_beside,
    need_classes,
    task_of,
)
from afina.models.sources.source import Source, locate
from afina.models.through_transformers import pretrained
from afina.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Facts:
    """The card of a base model. `sha256` is of its weight files; `hub_id` is None where it did not come from the
    hub."""

    name: str
    kind: str
    architecture: str
    layers: int
    hidden_size: int
    vocabulary: int
    parameters: int
    context_length: int
    licence: str | None
    revision: str | None
    hub_id: str | None
    sha256: str
    path: str

    @property
    def public_name(self) -> str:
        """Its id on the hub, or its name: no path, so that it may be given away."""
        return self.hub_id or self.name

    def card(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Base:
    """A frozen model with its tokenizer and facts; `dtype` is what it computes in, for `dtype_reason`.

    `engine` says in words what runs it; it `fell_back` where Afina's own decoder cannot, and a slower one does.
    """

    model: Writer | Answerer
    tokenizer: Tokenizer
    facts: Facts
    dtype: torch.dtype
    dtype_reason: str
    engine: str
    fell_back: bool = False

    @property
    def task(self) -> Task:
        return self.tokenizer.task


def load_base(  # noqa: PLR0913 - each by its name
    name: str = "starter",
    *,
    revision: str | None = None,
    precision: str = "auto",
    device: str | None = None,
    cache_dir: Path | None = None,
    task: TaskName | None = None,
    classes: Sequence[str] = (),
    quantize: Quantize | None = None,
    template: str | None = None,
) -> Base:
    """Loads the base model called `name`: a catalogue name, hub id, folder or `.gguf` file (see `locate`).

    `precision` is bf16, fp32 or auto (what the device computes faster, measured once). `task` is by default the one
    that the base was made for; a classifier needs its `classes`. `quantize` quantises the weights of the linear layers
    to nf4 or int8, or leaves a GGUF file's matrices quantised as they are (keep). `template` replaces the base's chat
    template. All parameters are frozen, the module is in evaluation mode. Raises `BaseModelError` and `SettingsError`.
    """
    for flag, value, known in (
        ("precision", precision, ("auto", *PRECISIONS)), ("quantize", quantize, (None, *get_args(Quantize))),
    ):  # fmt: skip
        if value not in known:
            raise SettingsError(f"{flag} is {value!r}", f"it takes {', '.join(map(str, known))}")
    share_the_processor()
    cache = cache_folder(cache_dir)
    source = locate(name, revision, cache)
    check_number_formats(source.path)
    on = pick_device(device)
    dtype, reason = pick_dtype(precision, on, cache)
    chosen = task_named(task) if task else task_of(source)
    if quantize == "keep" and not source.is_gguf:
        raise BaseModelError(f"--quantize keep is for GGUF files; base {name!r} is none", "use --quantize nf4 or int8")
    if not chosen.continues_text:
        if template is not None:
            raise BaseModelError(f"base {name!r} has no chat, so no chat template", "leave --template out")
        return _encoder(source, chosen, tuple(classes), on, (dtype, reason), quantize)
    own = ops.chosen(on, cache)
    read = read_causal(source, dtype, own, quantize, on)
    module, tok = read.module, read.tokenizer
    if template is not None:
        tok = tokenizer.with_template(tok, template)
    if tok.pad_id >= module.get_input_embeddings().num_embeddings:
        raise BaseModelError(
            f"base {name!r}: the tokenizer has more tokens than the model", "choose a base whose files agree"
        )
    quantised = _quantised(module.requires_grad_(False).eval(), quantize, dtype)
    module.to(on)
    engine = _engine(on, own.kernels, read.fallback_reason) + quantised
    engine += "".join(f"; {note}" for note in (read.note, *unusual_formats(source.path)) if note)
    model = wrapped(module, chosen, tok.pad_id)
    return Base(model, tok, _facts(source, module), dtype, reason, engine, read.fallback_reason is not None)


def wrapped(module: Any, task: Task, pad_id: int, heads: tuple[str, ...] = ()) -> Any:
    """The `Writer` or `Answerer` of a module that is on its device."""
    if isinstance(module, Decoder):
        return DecoderModel(module)
    if task.continues_text:
        return TransformersModel(module)
    if module.config.pad_token_id is None:  # a decoder's classifier looks for the last token before the padding
        module.config.pad_token_id = pad_id
    if module.device.type == "cpu" and not module.config.is_encoder_decoder:
        module.set_attn_implementation("eager")  # fused attention's backward pass is slow on short rows
    return (ClassifierModel if task.needs_classes else Seq2SeqModel)(module, pad_id, heads)


def _quantised(module: Any, quantize: Quantize | None, dtype: torch.dtype, leave: Sequence[str] = ()) -> str:
    """Quantises in place, where that is wanted, what was not quantised as it was read, before it goes to a card, where
    the whole may have no room; returns what to add to `Base.engine`."""
    if quantize is None:
        return ""
    if quantize == "keep":
        return "; its matrices stay in the file's blocks"
    left = quantise_linears(module, quantize, dtype, leave)
    except_for = f", but for {counted(len(left), 'layer')} whose rows do not fill whole blocks" if left else ""
    experts = any(p.dim() == 3 for p in module.parameters())
    full = " (experts' tensors stay in full precision)" if experts else ""
    return f"; linear layers in {quantize}{except_for}{full}"


def _encoder(
    source: Source, task: Task, classes: tuple[str, ...], on: torch.device, precision: tuple[torch.dtype, str],
    quantize: Quantize | None,
) -> Base:  # fmt: skip
    """An encoder with a new classification head, or an encoder-decoder, through transformers."""
    import transformers

    if source.is_gguf:
        raise BaseModelError(f"{source.path}: GGUF files are read for --task causal only", "give a model folder")
    dtype, reason = precision
    extra: dict[str, Any] = {}
    if task.writes_text and not config_of(source).is_encoder_decoder:
        raise BaseModelError(f"base {source.name!r} is no encoder-decoder", "leave --task out, or choose another base")
    if task.needs_classes:
        need_classes(classes)
        extra = {"num_labels": len(classes), "id2label": dict(enumerate(classes)), "ignore_mismatched_sizes": True}
    check_fits(build_skeleton(config_of(source), task, len(classes)), source)
    tok = tokenizer.encoder_tokenizer(source.path, task, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a new head is initialised the same everywhere
        module, missing = pretrained(getattr(transformers, task.auto_class), source, dtype, **extra)
    heads = _heads(module, missing) if task.needs_classes else ()
    engine = "through transformers: Afina's own decoder is for decoder-only models"
    engine += _quantised(module.requires_grad_(False).eval(), quantize, dtype, heads)
    module.to(on)
    engine += "".join(f"; {note}" for note in unusual_formats(source.path))
    return Base(wrapped(module, task, tok.pad_id, heads), tok, _facts(source, module), dtype, reason, engine)


def _heads(module: Any, missing: list[str]) -> tuple[str, ...]:
    """The paths of a classifier's modules that the base does not have: those beside it, and any whose weights were
    `missing`."""
    beside = heads_beside(module)
    fresh = {key.rpartition(".")[0] for key in missing if not key.startswith(tuple(f"{path}." for path in beside))}
    return (*beside, *sorted(fresh))


def _engine(on: torch.device, fused: Kernels | None, fallback_reason: str | None) -> str:
    if fallback_reason:
        return f"through transformers, slower than Afina's own decoder: {fallback_reason}"
    if on.type != "cpu":
        why = ops.why_torch(on)
        return f"Afina's decoder on {on.type}" + (f" by torch, for {'; '.join(why)}" if why else "")
    if fused is None:
        return f"Afina's decoder without fused kernels, for {kernels.why_not()}: slower, same results"
    compiled = f", compiled in {fused.seconds:.1f} s{fused.unkept}" if fused.seconds else ""
    return f"Afina's decoder with fused kernels{compiled}"


def import_libraries() -> None:
    """Imports what loading a base needs, some 100 MB, so that memory measured from here on is not that of imports."""
    from transformers import LlamaConfig, PreTrainedTokenizerFast  # noqa: F401 - for the libraries that they import


def describe(name: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Facts:
    """The facts of a base without loading its weights (fetched first if it is not on this disk)."""
    source = locate(name, revision, cache_folder(cache_dir))
    task = task_of(source)
    module = build_skeleton(config_of(source), task)
    # A classifier's head is no part of the base.
    return _facts(source, module if task.continues_text else module.base_model)


def load_tokenizer(
    name: str,
    task: Task | None = None,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    classes: Sequence[str] = (),
    template: str | None = None,
) -> tuple[Tokenizer, int]:
    """The tokenizer of the base called `name`, and its context in tokens, without its weights.

    `task` is by default the base's own. A classifier's answers are its `classes`; without any they are read as text.
    `template` replaces the base's chat template. Raises `BaseModelError`.
    """
    source = locate(name, revision, cache_folder(cache_dir))
    check_number_formats(source.path)
    task = task or task_of(source)
    if task.needs_classes and not classes:
        task = SEQ2SEQ
    if source.is_gguf or task.continues_text:
        tok = chat_tokenizer(source)
    else:
        tok = tokenizer.encoder_tokenizer(source.path, task, classes)
    if template is not None:
        tok = tokenizer.with_template(tok, template)
    return tok, context_length(source)


def _facts(source: Source, module: Any) -> Facts:
    config, text = module.config, module.config.get_text_config()  # of a model that sees, a part
    return Facts(
        name=source.name,
        kind=source.kind,
        architecture=config.model_type,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocabulary=module.get_input_embeddings().num_embeddings,
        parameters=parameter_count(module),
        context_length=context_of(config),
        licence=source.licence,
        revision=source.revision,
        hub_id=source.hub_id,
        sha256=source.digest(),
        path=str(source.path),
    )
