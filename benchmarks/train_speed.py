"""Training speed and memory against the peers, in one run: the same rows, rank, targets, batch and number of steps.

    python benchmarks/train_speed.py [--rows FILE] [--batch N] [--prompt T --completion T] [--order file]
        [--instruction TOKENS] [--json]

Each program runs in a process of its own, one after another, several rounds; medians are reported. Tokens are the
prompt and completion tokens, without padding, of complete optimiser steps after the warm-up, over rows of the file as
they are drawn (`--order file`: in its order, in which rows of one prompt may stand together, and share more). Distinct
tokens are those that Afina computes: what several rows of a pass begin with counts once. The peers may choose: bf16
weights with or without autocast, or fp32, whichever is fastest for them here; where a batch is too large for PEFT in
this memory, it takes micro-batches of eight rows. `limit` is what the processor's measured matrix peak would allow:
peak ÷ (4 × parameters used) tokens a second.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import common
from common import ALPHA, RANK, RATE, TARGETS, Rows, padded, peak_gb, peft_model

WARM_UP = 2
MICRO = 8  # rows of PEFT's micro-batches where a whole batch does not fit into memory
PEERS = ("afina", "peft", "trl", "litgpt")
LITGPT = Path(__file__).parents[1] / ".venv-litgpt/bin/python"  # its pins exclude our transformers


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after two to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peers", default=",".join(PEERS))
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        facts = common.prepare(options, options.batch * (WARM_UP + options.steps), set(options.peers.split(",")))
        result: dict[str, Any] = {"machine": common.machine(), "batch": options.batch, "precision": facts["precision"]}
        share = distinct_share(batches(options)[WARM_UP:])
        result |= {"order": options.order, "instruction": options.instruction, "distinct_share": share}
        found: dict[str, list[dict[str, float]]] = {peer: [] for peer in options.peers.split(",")}
        failed: dict[str, str] = {}
        for _ in range(options.rounds):
            for peer in found:
                try:
                    measured = None if peer in failed else measure(peer, options)
                except SystemExit as error:  # of its memory, mostly
                    if peer == "afina":
                        raise
                    failed[peer], measured = str(error).splitlines()[-1], None
                if measured:
                    found[peer].append(measured)
    for peer, rounds in found.items():
        result[peer] = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} if rounds else None
        if rounds:
            speed = result[peer].pop("tokens_per_second")
            result[peer] = {"tokens_per_second": speed, "distinct_per_second": share * speed, **result[peer]}
    result |= {"limit": facts["limit"], "peft_micro_batch": options.micro, "failed": failed}
    report(result, options.json)


def measure(peer: str, options: argparse.Namespace) -> dict[str, float] | None:
    python = LITGPT if peer == "litgpt" else Path(sys.executable)
    if not python.exists() or (peer != "litgpt" and importlib.util.find_spec(peer) is None):
        return None
    flags = ["--batch", str(options.batch), "--steps", str(options.steps)]
    if peer == "peft" and options.micro:
        flags += ["--micro", str(options.micro)]
    try:
        return common.worker(__file__, peer, options, *flags, python=python)
    except SystemExit:
        if peer != "peft" or options.micro or options.batch <= MICRO:
            raise
    options.micro = MICRO  # in the rounds to come, too
    return measure(peer, options)


def batches(options: argparse.Namespace) -> list[Rows]:
    rows = common.read_rows(options)
    return [rows[i : i + options.batch] for i in range(0, len(rows), options.batch)]


def distinct_share(steps: list[Rows]) -> float:
    """Of the tokens of these batches, those that are computed."""
    from afina.engine.forest import groups, plant
    from afina.training import TrainingSettings

    computed = tokens = 0
    for step in steps:
        ids = [row["ids"] for row in step]
        tokens += sum(map(len, ids))
        for numbers, _ in groups(ids, [0] * len(ids), TrainingSettings().tokens_per_pass):
            computed += len(plant([ids[i] for i in numbers], [0] * len(numbers)).ids)
    return computed / tokens


def labelled(group: Rows) -> int:
    return sum(label != -100 for row in group for label in row["labels"][1:])


def timed(step: Any, groups: list[Rows]) -> dict[str, float]:
    """Runs `step` on each batch; tokens a second of those after the warm-up."""
    tokens, loss, begun = 0, 0.0, 0.0
    for i, group in enumerate(groups):
        if i == WARM_UP:
            begun = time.perf_counter()
        loss = step(group)
        tokens += sum(len(row["ids"]) for row in group) if i >= WARM_UP else 0
    return {"tokens_per_second": tokens / (time.perf_counter() - begun), "peak_gb": peak_gb(), "loss": loss}


def run_afina(options: argparse.Namespace) -> dict[str, float]:
    return timed(afina_step(options.precision), batches(options))


def afina_step(precision: str) -> Callable[[Rows], float]:
    """An optimiser step on a batch; gives its loss."""
    from afina.core.device import keep_freed_memory
    from afina.data.template import Row
    from afina.lora import LoraConfig, inject
    from afina.models.load import load_base
    from afina.training.accumulation import gradients
    from afina.training.objectives import OBJECTIVES
    from afina.training.optimizer import Optimizer
    from afina.training.settings import TrainingSettings

    keep_freed_memory()
    base = load_base("starter", precision=precision)
    inject(base.model.module, LoraConfig(rank=RANK, alpha=ALPHA))
    base.model.module.train()
    optimizer = Optimizer(base.model.module, weight_decay=0.0)

    def step(group: Rows) -> float:
        rows = [Row(row["ids"], row["labels"], "") for row in group]
        loss, _ = gradients(base, rows, OBJECTIVES["supervised"], TrainingSettings().tokens_per_pass)
        optimizer.step(RATE, max_norm=1.0)
        return loss.item()

    return step


def run_peft(options: argparse.Namespace) -> dict[str, float]:
    """A plain loop, in the fastest of three ways to compute by the first step after the warm-up, of `MICRO` rows."""
    import torch

    groups = batches(options)
    ways = {"bf16": (torch.bfloat16, False), "autocast": (torch.bfloat16, True), "fp32": (torch.float32, False)}
    if options.precision == "fp32":
        ways = {"fp32": ways["fp32"]}

    def stepper(dtype: Any, autocast: bool) -> Any:
        model = peft_model(options, dtype).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)

        def step(group: Rows) -> float:
            total, size = labelled(group), options.micro or len(group)
            value = 0.0
            for part in (group[at : at + size] for at in range(0, len(group), size)):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = model(**padded(part)).loss * (labelled(part) / total)
                loss.backward()
                value += loss.item()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return value

        return step

    way = os.environ.get("AFINA_BENCH_WAY")
    if way:
        return timed(stepper(*ways[way]), [group[:MICRO] for group in groups[: WARM_UP + 1]])
    speeds = dict.fromkeys(ways, 0.0)
    for name in ways if len(ways) > 1 else ():  # each in a process of its own, for the peak of memory is one a process
        environment = {**os.environ, "AFINA_BENCH_WAY": name}
        with suppress(subprocess.SubprocessError):  # without the instructions for it, bf16 takes minutes a step
            done = subprocess.run(
                [sys.executable, *sys.argv], env=environment, capture_output=True, text=True, check=True, timeout=120
            )
            speeds[name] = json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_second"]
    if len(ways) > 1 and not any(speeds.values()):
        raise SystemExit(f"none of PEFT's ways ({', '.join(ways)}) came to an end")
    return timed(stepper(*ways[max(speeds, key=speeds.__getitem__)]), groups)


def trl_trainer(options: argparse.Namespace, rows: Rows, batch: int) -> tuple[Any, list[float]]:
    """TRL's SFTTrainer on the rows in their order, and the list that gets the time of each step's end."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_dict(
        {
            "input_ids": [row["ids"] for row in rows],
            "completion_mask": [[int(label != -100) for label in row["labels"]] for row in rows],
        }
    )
    fp32 = options.precision == "fp32"
    arguments = SFTConfig(
        output_dir=str(options.shared / "trl"),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=RATE,
        bf16=not fp32,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=None,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    tokenizer = AutoTokenizer.from_pretrained(options.shared / "model", pad_token="<|endoftext|>")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            options.shared / "model", dtype=torch.float32 if fp32 else torch.bfloat16
        ),
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    return trainer, times


def run_trl(options: argparse.Namespace) -> dict[str, float]:
    groups = batches(options)
    trainer, times = trl_trainer(options, [row for group in groups for row in group], options.batch)
    trainer.train()
    tokens = sum(len(row["ids"]) for group in groups[WARM_UP:] for row in group)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": tokens / (times[-1] - times[WARM_UP - 1]),
        "peak_gb": peak_gb(),
        "loss": float(losses[-1]),
    }


def run_litgpt(options: argparse.Namespace) -> dict[str, float]:
    """LitGPT's own LoRA model and chunked loss in its recommended loop, on our weights."""
    import torch
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    config = Config.from_name(
        "SmolLM2-135M-Instruct",
        lora_r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        lora_query=True,
        lora_key=True,
        lora_value=True,
        lora_projection=True,
        lora_mlp=True,
        lora_head=False,
    )
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    torch.set_default_dtype(dtype)
    model = GPT(config)
    state: dict[str, Any] = {}
    weights = load_file(options.shared / "model" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    copy_weights_hf_llama(config, {}, state, weights)
    model.load_state_dict({k: v.to(dtype) for k, v in state.items()}, strict=False)
    mark_only_lora_as_trainable(model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)

    def step(group: Rows) -> float:
        batch = padded(group)
        logits = model(batch["input_ids"], lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        loss = chunked_cross_entropy(logits, batch["labels"][..., 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return timed(step, batches(options))


WORKERS = {"afina": run_afina, "peft": run_peft, "trl": run_trl, "litgpt": run_litgpt}


def report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
        return
    share = result["distinct_share"]
    before = f" after an instruction of {result['instruction']} tokens" if result["instruction"] else ""
    order = "as drawn" if result["order"] == "drawn" else "in the file's order"
    print(f"{result['machine']}; batch {result['batch']}, Afina in {result['precision']}")
    print(f"rows {order}{before}: {100 * share:.0f} % of their tokens are computed, the rest is shared")
    print(f"{'':8} {'tokens/s':>9} {'distinct/s':>10} {'peak GB':>8} {'last loss':>10} {'Afina is':>9}")
    own = result.get("afina")
    for peer in PEERS:
        found = result.get(peer)
        if found is None:
            why = "not installed" if peer in result else "not asked for"
            print(f"{peer:8} {'failed: ' + result['failed'][peer] if peer in result['failed'] else why}")
            continue
        ratio = f"{own['tokens_per_second'] / found['tokens_per_second']:8.2f}x" if own else ""
        speeds = f"{found['tokens_per_second']:9.0f} {found['distinct_per_second']:10.0f}"
        micro = result["peft_micro_batch"] if peer == "peft" else None
        parts = f"  (in micro-batches of {micro} rows)" if micro else ""
        print(f"{peer:8} {speeds} {found['peak_gb']:8.2f} {found['loss']:10.3f} {ratio}{parts}")
    limit = result["limit"]
    for kind in ("bf16", "fp32"):
        most = limit[f"{kind}_tokens_per_second"]
        reached = f"; Afina reaches {own['distinct_per_second'] / most:.0%}" if own else ""
        print(
            f"limit in {kind}: {most:.0f} distinct tokens/s, {most / share:.0f} of rows "
            f"({limit[f'{kind}_gflops']:.0f} GFLOP/s of matrix products){reached}"
        )


if __name__ == "__main__":
    main()
