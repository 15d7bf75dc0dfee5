"""One call from a name to a frozen model that is ready to adapt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError

from afina.core.device import PRECISIONS, cache_folder, pick_device, pick_dtype
from afina.core.errors import BaseModelError, SettingsError
from afina.core.task import SEQ2SEQ, Task, TaskName, task_named
from afina.engine import kernels
from afina.engine.architecture import Unsupported
from afina.engine.blocks import Blocks, parameter_count, quantise_linears, quantiser_for
from afina.engine.decoder import Decoder
from afina.engine.families import architecture_of
from afina.engine.kernels import Kernels
from afina.models import tokenizer
from afina.models.causal import DecoderModel, TransformersModel
from afina.models.encoders import ClassifierModel, Seq2SeqModel
from afina.models.formats import gguf, gguf_models, safetensors_files
from afina.models.model import Answerer, Quantize, Writer
from afina.models.skeleton import (
    build_skeleton,
    causal_skeleton,
    config_of,
    context_of,
    decoder_skeleton,
    heads_beside,
    need_classes,
    task_of,
)
from afina.models.sources.source import Source, locate
from afina.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Facts:
    """The card of a base model. `sha256` is of its weight files; `hub_id` is None where it did not come from the hub."""

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

    `precision` is bf16, fp32 or auto (what the device computes faster, measured once). `task` is the model's head, by default
    the base's own; a classifier needs its `classes`. With `quantize` weights are kept in few bits: those of the linear layers
    in nf4 or int8, or a GGUF file's matrices as they are (keep). `template` takes the place of the base's chat template. All parameters are frozen, the module is in evaluation mode.
    Raises `BaseModelError`.
    """
    for flag, value, known in (
        ("precision", precision, ("auto", *PRECISIONS)), ("quantize", quantize, (None, *get_args(Quantize))),
    ):  # fmt: skip
        if value not in known:
            raise SettingsError(f"{flag} is {value!r}", f"it takes {', '.join(map(str, known))}")
    cache = cache_folder(cache_dir)
    source = locate(name, revision, cache)
    place = pick_device(device)
    dtype, reason = pick_dtype(precision, place, cache)
    chosen = task_named(task) if task else task_of(source)
    keep = quantize == "keep"
    if keep and (not source.is_gguf or place.type != "cpu"):
        raise BaseModelError(
            f"--quantize keep is for GGUF files, on the processor; base {name!r} is {'one' if source.is_gguf else 'none'}, on {place.type}",
            "use --quantize nf4 or int8",
        )
    fused = kernels.load(cache) if place.type == "cpu" else None
    if not chosen.continues_text:
        if template is not None:
            raise BaseModelError(f"base {name!r} has no chat, so no chat template", "leave --template out")
        return _whole(source, chosen, tuple(classes), place, (dtype, reason), quantize)
    module, tok, why_not = (_from_gguf if source.is_gguf else _from_folder)(source, dtype, fused, quantize)
    if template is not None:
        tok = tokenizer.with_template(tok, template)
    if tok.pad_id >= module.get_input_embeddings().num_embeddings:
        raise BaseModelError(
            f"base {name!r}: the tokenizer has more words than the model", "choose a base whose files agree"
        )
    module.requires_grad_(False).eval().to(place)
    words = _quantised(module, quantize, dtype)
    model: Any = DecoderModel(module) if isinstance(module, Decoder) else TransformersModel(module)
    return Base(
        model, tok, _facts(source, module), dtype, reason, _engine(place, fused, why_not) + words, why_not is not None
    )


def _quantised(module: Any, quantize: Quantize | None, dtype: torch.dtype, leave: Sequence[str] = ()) -> str:
    """Quantises in place, where that is wanted, what was not as it was read; what to say of it."""
    if quantize is None:
        return ""
    if quantize == "keep":
        return "; its matrices stay in the file's blocks"
    left = quantise_linears(module, quantize, dtype, leave)
    few = f", but for {len(left)} whose rows do not fill whole blocks" if left else ""
    experts = any(p.dim() == 3 for p in module.parameters())
    return f"; linear layers in {quantize}{few}" + (" (experts' tensors stay in full)" if experts else "")


def _whole(
    source: Source, task: Task, classes: tuple[str, ...], place: torch.device, chosen: tuple[torch.dtype, str],
    quantize: Quantize | None,
) -> Base:  # fmt: skip
    """An encoder with a new classification head, or an encoder-decoder, through transformers."""
    import transformers

    if source.is_gguf:
        raise BaseModelError(f"{source.path}: GGUF files are read for --task causal only", "give a model folder")
    dtype, reason = chosen
    extra: dict[str, Any] = {}
    if task.writes_text and not config_of(source).is_encoder_decoder:
        raise BaseModelError(f"base {source.name!r} is no encoder-decoder", "leave --task out, or choose another base")
    if task.needs_classes:
        need_classes(classes)
        extra = {"num_labels": len(classes), "id2label": dict(enumerate(classes)), "ignore_mismatched_sizes": True}
    tok = tokenizer.encoder_tokenizer(source.path, task, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a new head starts the same wherever it is made
        module, missing = _pretrained(getattr(transformers, task.auto_class), source, dtype, **extra)
    if module.config.pad_token_id is None:  # a decoder's classifier looks for the last token before the padding
        module.config.pad_token_id = tok.pad_id
    if place.type == "cpu" and not module.config.is_encoder_decoder:
        module.set_attn_implementation("eager")  # fused attention's backward pass is slow on short rows
    module.requires_grad_(False).eval().to(place)
    heads = _heads(module, missing) if task.needs_classes else ()
    kind = ClassifierModel if task.needs_classes else Seq2SeqModel
    engine = "through transformers: Afina's own decoder is for decoder-only models"
    engine += _quantised(module, quantize, dtype, heads)
    return Base(kind(module, tok.pad_id, heads), tok, _facts(source, module), dtype, reason, engine)


def _heads(module: Any, missing: list[str]) -> tuple[str, ...]:
    """The paths of a classifier's modules that the base did not bring: those beside it, and any whose weights were `missing`."""
    beside = heads_beside(module)
    fresh = {key.rpartition(".")[0] for key in missing if not key.startswith(tuple(f"{path}." for path in beside))}
    return (*beside, *sorted(fresh))


def _engine(place: torch.device, fused: Kernels | None, why_not: str | None) -> str:
    if why_not:
        return f"through transformers, slower than Afina's own decoder: {why_not}"
    if place.type != "cpu":
        return f"Afina's decoder on {place.type}"
    if fused is None:
        return "Afina's decoder without fused kernels, for there is no C++ compiler (g++): slower, same results"
    made = f", compiled in {fused.seconds:.1f} s" if fused.seconds else ""
    return f"Afina's decoder with fused kernels{made}"


def import_libraries() -> None:
    """Imports what loading a base needs, some 100 MB: memory measured from here on is of the work itself."""
    from transformers import LlamaConfig, PreTrainedTokenizerFast  # noqa: F401 - what they bring along is wanted


def describe(name: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Facts:
    """The facts of a base without loading its weights (fetched first if it is not on this disk)."""
    source = locate(name, revision, cache_folder(cache_dir))
    task = task_of(source)
    module = build_skeleton(config_of(source), task)
    return _facts(
        source, module if task.continues_text else module.base_model
    )  # a head of classes is no part of the base


def as_transformers(module: Any) -> Any:
    """The model in `transformers`' own class, to save it for other programs, or to compare: `module` itself where it is of such a class,
    else one with copies of the weights."""
    if not isinstance(module, Decoder):
        return module
    other = causal_skeleton(module.config)
    state = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    other.load_state_dict(state, strict=True, assign=True)
    other.tie_weights()
    _materialise_buffers(other)
    return other.requires_grad_(False).eval().to(next(module.parameters()).device)


def _materialise_buffers(module: Any) -> None:
    """Buffers that are computed, not stored (rotary frequencies, the scale of Gemma's word vectors), are made anew outside the
    meta device."""
    for child in list(module.modules()):
        if not any(buffer.is_meta for buffer in child.buffers(recurse=False)):
            continue
        if hasattr(child, "scalar_embed_scale"):
            child.register_buffer("embed_scale", torch.tensor(child.scalar_embed_scale), persistent=False)
            continue
        fresh = type(child)(child.config)
        for name, buffer in fresh.named_buffers(recurse=False):
            child.register_buffer(name, buffer, persistent=False)


_Read = tuple[Any, Tokenizer, str | None]  # the module, its tokenizer, and why it is not our decoder where it is not


def _from_gguf(source: Source, dtype: torch.dtype, fused: Kernels | None, quantize: Quantize | None) -> _Read:
    from transformers import AutoModelForCausalLM

    keep = quantize == "keep"
    file = gguf.GGUF(source.path)
    tok = tokenizer.from_gguf(file, source.path)
    config = gguf_models.read_config(file)
    if config:
        module = decoder_skeleton(config, architecture_of(config), fused)
        found = gguf_models.read_weights(
            file, config, module.state_dict(), dtype, quantiser_for(module, quantize, dtype), keep
        )
        if keep and not any(isinstance(value, Blocks) for value in found.values()):
            raise BaseModelError(f"--quantize keep: {source.path} holds no blocks", "use --quantize nf4 or int8")
        return _fill(source, module, found), tok, None
    family = file.metadata.get("general.architecture")
    if keep:
        raise BaseModelError(f"--quantize keep: architecture {family!r} is read through transformers", "leave it out")
    try:
        with quiet():
            other, info = AutoModelForCausalLM.from_pretrained(
                source.path.parent, gguf_file=source.path.name, dtype=dtype, output_loading_info=True
            )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise BaseModelError(f"{source.path}: architecture {family!r} is not supported ({error})") from error
    lost = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if lost:
        raise BaseModelError(
            f"{source.path}: transformers does not find the weights of {', '.join(lost[:3])} in it",
            "use the model's folder of *.safetensors files",
        )
    try:
        arch = architecture_of(other.config)
    except Unsupported as reason:
        return other, tok, str(reason)
    return _fill(source, decoder_skeleton(other.config, arch, fused), other.state_dict()), tok, None


def _fill(source: Source, module: Decoder, found: Mapping[str, torch.Tensor | Blocks]) -> Decoder:
    """Our decoder, empty before, with the weights `found`, by transformers' names."""
    needed = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if module.arch.tied:
        head = f"{module.arch.names.head}.weight"
        found = {name: value for name, value in found.items() if name != head}
        del needed[head]
    in_blocks = {name: value for name, value in found.items() if isinstance(value, Blocks)}
    for name, blocks in in_blocks.items():
        if sorted(needed.get(name, ())) == sorted((blocks.rows, blocks.columns)):  # GPT-2's matrices are turned
            module.take_blocks(name.removesuffix(".weight"), blocks)
            del needed[name]
    found = {name: value for name, value in found.items() if name not in in_blocks or name in needed}
    problems = [f"{name} is missing" for name in needed if name not in found]
    problems += [f"{name} is not used" for name in found if name not in needed]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, config.json needs {shape}"
        for name, shape in needed.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if problems:
        more = f" … and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BaseModelError(
            f"{source.path}: the weights do not fit: {'; '.join(problems[:3])}{more}",
            "download it again"
            if source.is_gguf
            else "the folder needs whole *.safetensors files that fit its config.json",
        )
    module.load_state_dict(dict(found), strict=False, assign=True)
    module.tie()
    return module


def load_tokenizer(
    name: str,
    task: Task | None = None,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    classes: Sequence[str] = (),
) -> tuple[Tokenizer, int]:
    """The tokenizer of the base called `name`, and its context in tokens, without its weights.

    `task` is by default the base's own. A classifier's answers are its `classes`; without any they are read as text.
    Raises `BaseModelError`.
    """
    source = locate(name, revision, cache_folder(cache_dir))
    task = task or task_of(source)
    if task.needs_classes and not classes:
        task = SEQ2SEQ
    if source.is_gguf:
        tok = tokenizer.from_gguf(gguf.GGUF(source.path), source.path)
    elif task.continues_text:
        tok = _folder_tokenizer(source)
    else:
        tok = tokenizer.encoder_tokenizer(source.path, task, classes)
    return tok, context_of(config_of(source))


def _folder_tokenizer(source: Source) -> Tokenizer:
    from transformers import GenerationConfig

    stops: list[int] = []
    if (source.path / "generation_config.json").is_file():
        end = GenerationConfig.from_pretrained(source.path).eos_token_id
        stops = [end] if isinstance(end, int) else list(end or [])
    return tokenizer.from_folder(source.path, stops)


def _from_folder(source: Source, dtype: torch.dtype, fused: Kernels | None, quantize: Quantize | None) -> _Read:
    config = config_of(source)
    tok = _folder_tokenizer(source)
    try:
        arch = architecture_of(config)
    except Unsupported as reason:
        return _through_transformers(source, config, dtype), tok, str(reason)
    module = decoder_skeleton(config, arch, fused)
    return (
        _fill(
            source,
            module,
            safetensors_files.read_weights(source.path, arch, dtype, quantiser_for(module, quantize, dtype)),
        ),
        tok,
        None,
    )


def _through_transformers(source: Source, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    causal_skeleton(config)  # says what is wrong with an architecture before its weights are read
    module, missing = _pretrained(AutoModelForCausalLM, source, dtype)
    if missing:
        raise BaseModelError(f"{source.path}: weights are missing: {', '.join(missing[:3])} …")
    return module


def _pretrained(maker: Any, source: Source, dtype: torch.dtype, **extra: Any) -> tuple[Any, list[str]]:
    """The model of a folder in transformers' class, and the names of the weights that the folder does not have."""
    try:
        with quiet():
            module, info = maker.from_pretrained(
                source.path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(
            f"{source.path}: the weights cannot be loaded ({str(error).splitlines()[0][:200]})",
            "the folder needs whole *.safetensors files that fit its config.json",
        ) from error
    return module, sorted(info["missing_keys"])


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports, which would run into our own lines."""
    from transformers.utils import logging

    before, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if before:
            logging.enable_progress_bar()


def _facts(source: Source, module: Any) -> Facts:
    config = module.config
    return Facts(
        name=source.name,
        kind=source.kind,
        architecture=config.model_type,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocabulary=module.get_input_embeddings().num_embeddings,
        parameters=parameter_count(module),
        context_length=context_of(config),
        licence=source.licence,
        revision=source.revision,
        hub_id=source.hub_id,
        sha256=source.digest(),
        path=str(source.path),
    )
