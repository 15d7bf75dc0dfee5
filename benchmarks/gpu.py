"""One graphics card: is it right there, how fast is it, beside whom, and how fast does it generate?

    python benchmarks/gpu.py [--part right,speed,peers,generate] [--device cuda] [--seconds 220]
    python benchmarks/gpu.py --part right --device cpu --tiny

Each part takes under four minutes on a card of the H100's class and prints as it goes; what has no time left in a part
is named, and left out. Weights are random and made on the card, rows are made up: nothing is downloaded.

right: steps of the trainer in which the card must not be waited for; gradients in bf16 of rows and of forests of rows,
    short trainings in bf16 and fp16, and loss curves of 50 steps, against the processor in fp32; a run cut and resumed,
    to the bit; all families of our decoder, tiny, the same way (losses, gradients, greedy tokens); blocks of GGUF files
    and NF4 against the processor's; bases in blocks against the same numbers, with gradients; seeds.
speed: LoRA and QLoRA at the shape of Llama 3.1 8B, rank 16 on all linear layers, 32 rows of 4,096 tokens all labelled
    (NeMo publishes 12,473 tokens a second on an H100, LoRAFusion 14,875; the goal is 15,500), short rows at 135 M, 1.7
    and 8 B; the forecast of the same; the share of what large products reach; and where the time goes.
peers: short rows beside PEFT, TRL, PEFT with Liger's kernels, and Unsloth, whichever are installed.
generate: 1, 32 and 256 answers at one time, adapters unmerged, beside PEFT's `generate`.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from common import ALPHA, RANK, TARGETS
from gpu_models import (
    TINY,
    Memory,
    Place,
    Shape,
    base_of,
    filled,
    full_rows,
    limit,
    ours,
    profile_of,
    say,
    short_rows,
    stepper,
    timed,
    tokens_of,
)
from gpu_training import STEPS, adapter_of, curve, cut_and_resumed, trained

from afina.core.device import cache_folder, overlaps, pick_device, set_arithmetic, wait_for
from afina.core.errors import SettingsError
from afina.data.batch import pack
from afina.data.template import Row
from afina.engine import ops
from afina.engine.blocks import GGML_FORMATS, Blocks, quantise, quantise_linears
from afina.engine.families import architecture_of
from afina.lora import LoraConfig, inject
from afina.lora.merging import dequantise
from afina.models import generate
from afina.models.load import Base
from afina.models.sampling import Sampling
from afina.models.skeleton import decoder_skeleton
from afina.training.accumulation import gradients
from afina.training.loss import device_of
from afina.training.objectives import OBJECTIVES

GOAL = 15_500  # tokens a second of LoRA at 8 B and full length
NEW = 64  # tokens of an answer whose speed is measured


class Part:
    """A part of the benchmark: what is left of its time, and what was not as it should be."""

    def __init__(self, place: Place, seconds: float) -> None:
        self.place, self.failures = place, 0
        self.speeds: dict[str, float] = {}  # tokens a second, by the row of the table
        self._ends = time.monotonic() + seconds

    def has(self, seconds: float, what: str) -> bool:
        """Whether there is so much time for it; said, where there is not."""
        if self.place.tiny or time.monotonic() + seconds < self._ends:
            return True
        say(f"  {what}: no time left for it in this part")
        return False

    def check(self, what: str, found: float, most: float) -> None:
        """A distance, and the most that it may be."""
        good = found <= most
        self.failures += not good
        say(f"  {'ok  ' if good else 'FAIL'} {what:58} {found:9.2e} of {most:.0e}")

    def trying(self, what: str, function: Callable[[], Any]) -> Any:
        """What the function gives; None, told and counted, where it raises."""
        try:
            return function()
        except Exception as error:
            self.failures += 1
            say(f"  FAIL {what}: {type(error).__name__}: {str(error).splitlines()[0][:140] if str(error) else ''}")
            traceback.print_exc(limit=-3, file=sys.stdout)
        finally:
            gc.collect()
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models everywhere: only that it runs")
    parser.add_argument("--seconds", type=float, default=220, help="for each part")
    options = parser.parse_args()
    names = options.part.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    try:
        device = pick_device(options.device)
    except SettingsError as error:
        parser.error(f"{error}\n--device cpu --tiny tries the code on the processor")
    warnings.simplefilter("ignore")  # of the peers, among themselves
    place = Place(device, options.tiny)
    say(place.describe())
    failures = 0
    for name in names:
        begun = time.monotonic()
        say(f"\n== {name}")
        part = Part(place, options.seconds)
        part.trying(name, lambda name=name, part=part: PARTS[name](part))
        failures += part.failures
        say(f"{name}: {time.monotonic() - begun:.0f} s, {part.failures} failed")
    sys.exit(1 if failures else 0)


# ------------------------------------------------------------------------------------------------ right


def right(part: Part) -> None:
    set_arithmetic(part.place.device, False, True)  # of which the matrix library reads a part once, before all products
    set_arithmetic(part.place.device, False, False)
    checks: dict[str, Callable[[], Any]] = {
        "waits": lambda: _waits(part),
        "bf16": lambda: _in_bf16(part),
        "trainings": lambda: _trains(part),
        "loss curves": lambda: _curves(part),
        "resumed": lambda: _resumed(part),
    }
    checks |= {family: lambda family=family: _family(part, family) for family in _families()}
    checks |= {each: lambda each=each: _in_blocks(part, each) for each in ("nf4", "int8")}
    checks |= {
        f"keep {kind}": lambda kind=kind: _kept(part, kind) for kind in ("Q8_0", "Q4_K", "Q6_K", "Q4_0", "Q4_1", "Q5_K")
    }
    checks |= {"formats": lambda: _formats(part), "seeds": lambda: _seeds(part)}
    if overlaps(part.place.device):
        part.check("kernels that are interpreted, as in tests", float("TRITON_INTERPRET" in os.environ), 0)
    for what, check in checks.items():
        if part.has(10, what):
            part.trying(what, check)


def _families() -> dict[str, Any]:
    from gguf_files import FAMILIES

    return FAMILIES


def _formats(part: Part) -> None:
    """Every format of blocks, dequantised there and on the processor."""
    source = torch.Generator().manual_seed(0)
    worst = 0.0
    for number, (_, _, size) in GGML_FORMATS.items():
        raw = torch.randint(0, 120, (64, 4 * size), dtype=torch.uint8, generator=source)  # scales that are numbers
        columns = 4 * GGML_FORMATS[number][1]
        there = Blocks(raw.to(part.place.device), number, columns, torch.float32).dequantised().cpu()
        here = Blocks(raw, number, columns, torch.float32).dequantised()
        worst = max(worst, _distance(there, here))
    part.check(f"{len(GGML_FORMATS)} formats of GGUF files, dequantised", worst, 1e-6)
    for kind in ("nf4", "int8"):
        weight = torch.randn(96, 512, generator=source)
        here, there = (quantise(weight.to(device), kind, torch.float32) for device in ("cpu", part.place.device))
        assert here is not None
        assert there is not None
        differing = float((here.data != there.data.cpu()).float().mean())
        part.check(f"{kind}: share of other bytes than the processor's", differing, 1e-3)
        part.check(f"{kind}: dequantised", _distance(there.dequantised().cpu(), here.dequantised()), 2e-3)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest number."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-30))


def _rows(words: int = 300) -> list[Row]:
    """Of many lengths, some of which begin alike; parts of them are labelled."""
    source = torch.Generator().manual_seed(3)
    head = torch.randint(3, words, (40,), generator=source).tolist()
    rows = []
    for n in (5, 70, 17, 33, 64, 9):
        own = torch.randint(3, words, (n,), generator=source).tolist()
        ids = (head if n % 2 else []) + own
        rows.append(Row(ids, [-100] * (len(ids) - n // 2 - 1) + ids[len(ids) - n // 2 - 1 :], ""))
    return rows


def _pair(part: Part, config: Any, dtype: torch.dtype = torch.float32) -> tuple[Base, Base]:
    """The same random model on the processor in fp32, with its kernels, and on the device in `dtype`; adapted, with
    updates that are something."""
    pair = []
    host, there, folder = torch.device("cpu"), part.place.device, cache_folder()
    for device, own, kind in (
        (host, ops.chosen(host, folder), torch.float32),
        (there, ops.TORCH if there == host else ops.chosen(there, folder), dtype),
    ):
        module = decoder_skeleton(config, architecture_of(config), own).to_empty(device="cpu")
        module.tie()
        filled(module)
        module.requires_grad_(False).eval().to(kind)
        inject(module, LoraConfig(rank=8, alpha=16), 0)
        with torch.no_grad():
            for name, parameter in sorted(module.named_parameters()):
                if "lora_b" in name:
                    parameter.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(len(name)))
        pair.append(base_of(module.to(device), kind))
    return pair[0], pair[1]


def _family(part: Part, family: str) -> None:
    here, there = _pair(part, _families()[family])
    rows, found = _rows(), []
    for base in (here, there):
        loss, own = _learned(base, rows)
        with torch.no_grad():
            logits = base.model.label_logits(pack(rows, device_of(base))).cpu()
        found.append((loss, own, logits))
    (loss, grads, logits), (other, others, their_logits) = found
    part.check(f"{family}: loss", abs(other / loss - 1), 1e-4)
    part.check(f"{family}: logits", _distance(their_logits, logits), 1e-3)
    part.check(f"{family}: gradients", max(map(_distance, others, grads)), 5e-3)
    asked = [_tokens(base, rows) for base in (here, there)]
    part.check(f"{family}: greedy tokens that differ", float(asked[0] != asked[1]), 0)
    there.model.module.to(torch.bfloat16)
    part.check(f"{family}: losses in bf16", _distance(_losses(there), _losses(here)), 3e-2)


def _learned(base: Base, rows: Sequence[Row]) -> tuple[float, list[torch.Tensor]]:
    """The loss of the rows, and the gradients of the adapter, on the host."""
    base.model.module.train()
    loss, _ = gradients(base, rows, OBJECTIVES["supervised"], 128)
    own = [p.grad.float().cpu() for p in base.model.module.parameters() if p.grad is not None]
    base.model.module.zero_grad(set_to_none=True)
    base.model.module.eval()
    return float(loss), own


def _in_bf16(part: Part) -> None:
    """Gradients of rows for themselves, and of a forest of rows that begin alike."""
    here, there = _pair(part, _wide(), torch.bfloat16)
    for what, shares in (("rows", False), ("a forest", True)):
        here.model.sharing = there.model.sharing = shares
        (loss, grads), (other, others) = _learned(here, _rows()), _learned(there, _rows())
        part.check(f"bf16: loss of {what}", abs(other / loss - 1), 1e-2)
        part.check(f"bf16: gradients of {what}", max(map(_distance, others, grads)), 5e-2)


def _trains(part: Part) -> None:
    """A dozen steps of the trainer in each format of 16 bits, in fp16 with the loss scaled."""
    expected = curve(_pair(part, _wide())[0], _rows())
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found = curve(_pair(part, _wide(), dtype)[1], _rows())
        most = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
        part.check(f"{name}: losses of {len(found)} steps of the trainer", most, 5e-3)


def _resumed(part: Part) -> None:
    """A run that is cut off and resumed ends with the bits of one that is not."""
    whole, first, again = (_pair(part, _wide())[1] for _ in range(3))
    set_arithmetic(part.place.device, False, True)
    try:
        trained(whole, _rows())
        with tempfile.TemporaryDirectory() as folder:
            found = cut_and_resumed(first, again, _rows(), Path(folder))
    finally:
        set_arithmetic(part.place.device, False, False)
    differing = [name for name, value in adapter_of(whole).items() if not torch.equal(value, found[name])]
    part.check("deterministic: tensors that differ after resuming", len(differing), 0)


def _tokens(base: Base, rows: Sequence[Row], how: Sampling | None = None) -> list[list[int]]:
    from afina.models.batcher import Batcher

    batcher = Batcher(base.model, base.tokenizer, 4)
    asked = [batcher.submit(row.input_ids[:20], 12, how or Sampling()) for row in rows]
    while batcher.busy:
        batcher.step()
    if fault := next((request.fault for request in asked if request.fault), None):
        raise fault
    return [request.token_ids for request in asked]


def _wide() -> Any:
    return Shape(128, 256, 2, 4, 2, 320, True).config(256)


def _in_blocks(part: Part, quantize: str) -> None:
    """A quantised base there, against the same numbers in full."""
    base = _pair(part, _wide())[1]
    quantise_linears(base.model.module, quantize, torch.float32)
    kept, (_, grads) = _losses(base), _learned(base, _rows())
    dequantise(base.model.module)
    part.check(f"{quantize}: losses against the same numbers in full", _distance(kept, _losses(base)), 1e-3)
    part.check(f"{quantize}: gradients against those", max(map(_distance, grads, _learned(base, _rows())[1])), 5e-3)


def _losses(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model.label_losses(pack(_rows(), device_of(base))).cpu()


def _kept(part: Part, kind: str) -> None:
    """A GGUF file's blocks there, against the same file in full."""
    from gguf_files import write

    from afina.models import load_base

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write(path, "llama", kind)
        device = str(part.place.device)
        bases = [
            load_base(str(path), precision="fp32", device=device, quantize=quantize) for quantize in ("keep", None)
        ]
    part.check(f"keep, {kind}: losses against the file in full", _distance(*map(_losses, bases)), 1e-3)
    for base in bases:
        inject(base.model.module, LoraConfig(rank=8, alpha=16), 0)
    (_, kept), (_, full) = (_learned(base, _rows()) for base in bases)
    part.check(f"keep, {kind}: gradients against those", max(map(_distance, kept, full)), 5e-3)


def _curves(part: Part) -> None:
    """Fifty steps here and there, from the same start on the same rows."""
    from afina.training.optimizer import Optimizer

    curves = []
    for base in _pair(part, _wide()):
        base.model.module.train()
        optimizer, curve = Optimizer(base.model.module, 0.0), []
        for step in range(50):
            rows = _rows()[step % 3 :]
            loss, _ = gradients(base, rows, OBJECTIVES["supervised"], 256)
            optimizer.step(5e-3, 1.0)
            curve.append(float(loss))
        curves.append(curve)
    here, there = curves
    say(
        f"  loss of the first and last step: {here[0]:.4f} and {here[-1]:.4f} here, "
        f"{there[0]:.4f} and {there[-1]:.4f} there"
    )
    part.check("loss curves of 50 steps", max(abs(a - b) / a for a, b in zip(here, there, strict=True)), 2e-2)
    part.check("the loss that is left", there[-1] / there[0], 0.9)


def _seeds(part: Part) -> None:
    base = _pair(part, _wide())[1]
    how = Sampling(temperature=1.3, top_p=0.9, repetition_penalty=1.1, seed=5)
    one, same = _tokens(base, _rows(), how), _tokens(base, _rows(), how)
    part.check("the same seeds give other tokens", float(one != same), 0)
    alone = [_tokens(base, [row], how)[0] for row in _rows()]
    part.check("alone other tokens than in a batch (of six)", sum(a != b for a, b in zip(one, alone, strict=True)), 1)


def _waits(part: Part) -> None:
    """The trainer's steps, in which waiting for a card is an error; of a processor it is not asked."""
    runs: dict[str, tuple[dict[str, Any], bool]] = {
        "rows": ({}, False),
        "a forest": ({}, True),
        "VeRA": ({"variant": "vera"}, True),
        "tokens' rows": ({"trainable_tokens": (5, 6, 7)}, True),
    }
    for what, (config, share) in runs.items():
        run = trained(ours(TINY["tiny"], part.place, **config), _rows(), share=share)
        part.check(f"steps of {what} that were not taken, or waited", STEPS - run.steps, 0)


# ------------------------------------------------------------------------------------------------ speed


def speed(part: Part) -> None:
    place = part.place
    most = limit(place)
    say(f"  large products: {most / 1e12:.1f} TFLOP/s")
    say(f"  {'':34} {'tokens/s':>9} {'of limit':>8} {'peak GB':>8} (reserved)")
    name, shape = list(place.shapes.items())[-1]
    length, rows, per_pass = (64, 4, 128) if place.tiny else (4096, 32, 8192)
    for quantize in (None, "nf4"):
        what = f"{name}, {'QLoRA' if quantize else 'LoRA'}, rows of {length:,}"
        if part.has(60, what):
            part.trying(
                what, lambda what=what, q=quantize: _full_length(part, what, shape, q, length, rows, per_pass, most)
            )
    if (lora := part.speeds.get("LoRA")) and not place.tiny:
        say(f"  LoRA is at {lora / GOAL:.1%} of the goal of {GOAL:,} tokens/s on an H100")
    if lora and (quantised := part.speeds.get("QLoRA")):
        say(f"  QLoRA is at {quantised / lora:.1%} of LoRA's speed; the goal is within 3 %, 97.0 % and more")
    for name, shape in place.shapes.items():
        for quantize in (None, "nf4") if shape is list(place.shapes.values())[-1] else (None,):
            what = f"{name}, {'QLoRA' if quantize else 'LoRA'}, short rows"
            if part.has(25, what):
                part.trying(what, lambda what=what, s=shape, q=quantize: _short(part, what, s, q, most))


def _full_length(  # noqa: PLR0913 - one row of the table
    part: Part, what: str, shape: Shape, quantize: str | None, length: int, rows: int, per_pass: int, most: float
) -> None:  # fmt: skip
    place = part.place
    made = full_rows(shape, rows, length)
    with Memory(place) as memory:
        base = ours(shape, place, quantize)
        for size, again in ((per_pass, False), (per_pass // 2, False), (length, False), (length, True)):
            if again:
                base.model.checkpoint_activations()
            few, step = made[: max(1, 2 * size // length)], stepper(base, size)
            with suppress(torch.OutOfMemoryError):  # what the error holds of the step is let go of
                step(few)
                break
            how = ", each layer's activations computed twice" if again else ""
            say(f"  {what}: passes of {size:,} tokens{how} do not fit")
            base.model.module.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        else:
            return
        wait_for(place.device)
        begun = time.perf_counter()
        step(made)
        wait_for(place.device)
        seconds = time.perf_counter() - begun
    part.speeds["QLoRA" if quantize else "LoRA"] = tokens_of(made) / seconds
    _line(what, tokens_of(made) / seconds, shape.operations(length), most, memory.gb)
    if quantize is None:
        say(profile_of(lambda: step(few), place))
        part.trying("forecast", lambda: _forecast(part, shape, length, size, again))


def _short(part: Part, what: str, shape: Shape, quantize: str | None, most: float) -> None:
    place = part.place
    with Memory(place) as memory:
        step = stepper(ours(shape, place, quantize), 1024 if place.tiny else 8192)
        rows = short_rows(shape, 32)
        seconds = timed(lambda: step(rows), place, 0.1 if place.tiny else 4.0)
    _line(what, tokens_of(rows) / seconds, shape.operations(tokens_of(rows) / len(rows)), most, memory.gb)
    if shape is next(iter(place.shapes.values())) and not place.tiny:
        say(profile_of(lambda: step(rows), place))


def _line(what: str, speed: float, operations: float, most: float, gb: float) -> None:
    say(f"  {what:34} {speed:9.0f} {speed * operations / most:8.1%} {gb:8.2f}")


def _forecast(part: Part, shape: Shape, length: int, per_pass: int, again: bool) -> None:
    """What `afina fit` would say of this machine, measured now."""
    from afina.core.task import CAUSAL
    from afina.data.settings import DataSettings
    from afina.forecast.benchmark import measured
    from afina.forecast.estimate import forecast_training
    from afina.forecast.expected import NO_DATA
    from afina.forecast.machines import Machine
    from afina.forecast.workload import Workload
    from afina.models.footprint import free_bytes
    from afina.models.skeleton import Skeleton, build_skeleton
    from afina.settings import RunSettings
    from afina.training.settings import TrainingSettings

    place = part.place
    if place.tiny:
        return
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        found = measured(place.device, place.dtype, Path(folder))
    fused = ops.chosen(place.device, cache_folder()) is not ops.TORCH
    free, is_card = free_bytes(place.device), overlaps(place.device)
    machine = Machine("here", free, 0, place.dtype, found, fused=fused, heap=False, is_card=is_card)
    train = TrainingSettings(batch_size=32, tokens_per_pass=per_pass, checkpoint_activations=again)
    lora = LoraConfig(rank=RANK, alpha=ALPHA, target_modules=tuple(TARGETS))
    settings = RunSettings(base="x", data=DataSettings(path=NO_DATA), train=train, lora=lora)
    base = Skeleton("x", build_skeleton(shape.config(), CAUSAL), CAUSAL, length, 0, False)
    seen = forecast_training(base, settings, Workload([length] * 64, 1.0, 0, 0, 0.0, 0, 0.0, 0), machine)
    say(
        f"  forecast of the same, by a benchmark of {time.monotonic() - begun:.0f} s: "
        f"{64 * length / seen.epoch_seconds:.0f} tokens/s, {seen.memory.training / 1e9:.1f} GB reserved"
    )


# ------------------------------------------------------------------------------------------------ peers


def peers(part: Part) -> None:
    from gpu_peers import PEERS, is_installed, pads

    place = part.place
    say(f"  32 short rows a step{'':14} {'tokens/s':>9} {'Afina is':>9} {'peak GB':>8}")
    budget = 0.1 if place.tiny else 3.0
    for name, shape in place.shapes.items():
        rows, own = short_rows(shape, 32), 0.0
        makers: dict[str, Any] = {"Afina": lambda shape=shape: stepper(ours(shape, place), 8192)}
        for peer, (package, make) in PEERS.items():
            if is_installed(package):
                makers[peer] = lambda make=make, shape=shape: make(shape, place, 32)
            elif shape is next(iter(place.shapes.values())):
                say(f"  {peer}: {package} is not installed")
        for peer, make in makers.items():
            what = f"{name}, {peer}{', padded' if peer != 'Afina' and pads(peer, place) else ''}"
            if not part.has(15, what):
                continue
            with Memory(place) as memory:
                step = part.trying(what, make)
                took = step and part.trying(what, lambda step=step, rows=rows: timed(lambda: step(rows), place, budget))
                step = None
            if took:
                speed = tokens_of(rows) / took
                own = speed if peer == "Afina" else own
                ratio = f"{own / speed:8.2f}x" if own and peer != "Afina" else f"{'':9}"
                say(f"  {what:34} {speed:9.0f} {ratio} {memory.gb:8.2f}")


# ------------------------------------------------------------------------------------------------ generate


def generation(part: Part) -> None:
    place = part.place
    name, shape = list(place.shapes.items())[-1]
    sizes, new, asked = ((1, 4), 8, 16) if place.tiny else ((1, 32, 256), NEW, 128)
    prompts = [row.input_ids for row in full_rows(shape, max(sizes), asked)]
    say(f"  {name}: {new} new tokens after {asked} of a prompt{'':4} {'tokens/s':>9} {'peak GB':>8}")

    def tell(what: str, size: int, run: Callable[[list[list[int]]], None]) -> None:
        if not part.has(15, f"{what}, {size}"):
            return
        with Memory(place) as memory:
            run(prompts[:size])
            wait_for(place.device)
            begun = time.perf_counter()
            run(prompts[:size])
            wait_for(place.device)
            seconds = time.perf_counter() - begun
        say(f"  {what:38} {size:4} {size * new / seconds:14.0f} {memory.gb:8.2f}")

    for what, how in (("Afina, greedy", Sampling()), ("Afina, top-p 0.9", Sampling(temperature=1.0, top_p=0.9))):
        base = part.trying(what, lambda: ours(shape, place))
        for size in sizes:
            part.trying(
                f"{what}, {size}",
                lambda what=what, size=size, how=how, base=base: tell(
                    what, size, lambda some: generate(base, some, new, how, len(some)) and None
                ),
            )
        if base is not None and what == "Afina, greedy" and not place.tiny:
            say(profile_of(lambda base=base: generate(base, prompts[:32], 8, batch_size=32), place))
        base = None
    part.trying("PEFT", lambda: _peft_generates(place, shape, new, sizes, tell))


def _peft_generates(place: Place, shape: Shape, new: int, sizes: Sequence[int], tell: Any) -> None:
    from gpu_peers import is_installed, peft_model

    if not is_installed("peft"):
        say("  PEFT is not installed")
        return
    model = peft_model(shape, place).eval()

    def run(some: list[list[int]]) -> None:
        ids = torch.tensor(some, device=place.device)
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip

    for size in sizes:
        tell("PEFT, greedy", size, run)


PARTS: dict[str, Callable[[Part], None]] = {
    "right": right,
    "speed": speed,
    "peers": peers,
    "generate": generation,
}

if __name__ == "__main__":
    main()
