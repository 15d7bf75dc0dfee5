"""What the benchmarks share: the rows and the model that all programs get, processes of their own, the machine."""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RANK, ALPHA, RATE = 16, 32, 2e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TICKETS = Path(__file__).parents[1] / "afina/examples/tickets_train.jsonl"
Rows = list[dict[str, list[int]]]
PEERS = {"peft", "trl", "litgpt", "llama"}
ENVIRONMENT = dict(os.environ)  # as the user has it: `import afina` sets how threads wait, which peers do not have


def parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rows", type=Path, help="JSONL, JSON or CSV; by default the tickets that come with Afina")
    found.add_argument("--prompt", help="by default E2E's template, or the tickets'")
    found.add_argument("--completion")
    found.add_argument("--order", choices=["drawn", "file"], default="drawn", help="drawn: by a fixed seed")
    found.add_argument("--instruction", type=int, default=0, help="tokens of an instruction before each prompt")
    found.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    found.add_argument("--json", action="store_true", help="print one JSON object")
    found.add_argument("--worker", help=argparse.SUPPRESS)
    found.add_argument("--shared", type=Path, help=argparse.SUPPRESS)
    return found


def defaults(options: argparse.Namespace) -> None:
    """The tickets that come with Afina where no rows were given; E2E's templates for others."""
    if options.rows is None:
        options.rows = TICKETS
        options.prompt, options.completion = options.prompt or "{message}", options.completion or "{ticket}"
    options.prompt, options.completion = options.prompt or "Describe: {mr}", options.completion or "{text}"


def messages(count: int) -> list[str]:
    """Those of the first tickets."""
    lines = TICKETS.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["message"] for line in lines]


def prepare(options: argparse.Namespace, needed: int, peers: set[str]) -> dict[str, Any]:
    """Writes the token ids that all use, and the model for the peers; measures the processor's limit."""
    import torch

    from afina.data.load import load_data
    from afina.data.settings import DataSettings
    from afina.models.formats import gguf, gguf_models
    from afina.models.load import load_base

    base = load_base("starter", precision=options.precision)
    if base.dtype == torch.float32:  # without the instructions for it, the peers' bf16 takes minutes a step
        options.precision = "fp32"
    settings = DataSettings(path=options.rows, prompt=options.prompt, completion=options.completion)
    data = load_data(settings, base)
    order = sorted([*data.train, *data.held_out], key=lambda row: int(row.location.rsplit(":", 1)[-1]))
    if options.order == "drawn":
        random.Random(0).shuffle(order)
    rows = (order * (needed // len(order) + 1))[:needed]
    said = [random.Random(1).randrange(1000, base.facts.vocabulary - 1000) for _ in range(options.instruction)]
    parts = [{"ids": said + row.input_ids, "labels": [-100] * len(said) + row.labels} for row in rows]
    (options.shared / "rows.json").write_text(json.dumps(parts))
    (options.shared / "gguf.txt").write_text(str(base.facts.path))
    if peers - {"afina"}:
        from transformers import LlamaForCausalLM

        file = gguf.GGUF(Path(base.facts.path))
        model = LlamaForCausalLM(gguf_models.read_config(file))
        state = gguf_models.read_weights(file, model.config, model.state_dict(), torch.float32)
        model.load_state_dict(state, strict=False)
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(options.shared / "model")
        base.tokenizer.inner.save_pretrained(options.shared / "model")
    labelled = sum(sum(label != -100 for label in part["labels"]) for part in parts)
    tokens = sum(len(part["ids"]) for part in parts)
    head = base.facts.vocabulary * base.facts.hidden_size
    # Word vectors are looked up, not multiplied; the head multiplies them at the labelled positions only.
    used = base.facts.parameters - head + head * labelled / tokens
    peak = {name: matrix_peak(dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    limit = {f"{name}_tokens_per_second": value / (4 * used) for name, value in peak.items()}
    limit |= {f"{name}_gflops": value / 1e9 for name, value in peak.items()}
    return {"limit": limit, "precision": str(base.dtype).removeprefix("torch.")}


def matrix_peak(dtype: Any) -> float:
    """The most floating-point operations a second of a large matrix product."""
    import torch

    best = 0.0
    for size in (256, 512, 1024, 2048):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        for _ in range(12):
            start = time.perf_counter()
            a @ b
            seconds = time.perf_counter() - start
            best = max(best, 2 * size**3 / seconds)
            if seconds > 0.5:  # a processor without this dtype takes minutes
                return best
    return best


def worker(
    script: str, name: str, options: argparse.Namespace, *flags: str, python: Path = Path(sys.executable)
) -> Any:
    """What `script` prints as its last line when it runs as the worker `name`, in a process of its own."""
    command = [str(python), script, "--worker", name, "--shared", str(options.shared), "--precision", options.precision]
    environment = ENVIRONMENT if name.partition(":")[0] in PEERS else os.environ
    paths = {**environment, "PYTHONPATH": str(Path(__file__).parent.parent)}  # LitGPT's environment has no Afina
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=paths)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def read_rows(options: argparse.Namespace) -> Rows:
    return json.loads((options.shared / "rows.json").read_text())


def plan_facts(base: Any, rows: list[Any]) -> Any:
    """What the plan of a training on these rows looks at."""
    from afina.training.plan import PlanFacts

    labelled = sum(row.labelled for row in rows) / len(rows)
    return PlanFacts([len(row.input_ids) for row in rows], labelled, base.facts.hidden_size)


def peak_gb() -> float:
    """The most memory that this process has held."""
    from afina.core.device import peak_memory_gb

    return peak_memory_gb()


def padded(group: list[dict[str, list[int]]]) -> dict[str, Any]:
    import torch

    width = max(len(row["ids"]) for row in group)
    fill = {"input_ids": ("ids", 0), "labels": ("labels", -100)}
    batch = {
        name: torch.tensor([row[key] + [pad] * (width - len(row[key])) for row in group])
        for name, (key, pad) in fill.items()
    }
    mask = [[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in group]
    return batch | {"attention_mask": torch.tensor(mask)}


def peft_model(options: argparse.Namespace, dtype: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.shared / "model", dtype=dtype)
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"))


def machine() -> str:
    import torch

    from afina.core.device import processor

    amx = "amx" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    return (
        f"{processor()}, {torch.get_num_threads()} threads, {'with' if amx else 'no'} "
        f"AMX, {platform.system()}, torch {torch.__version__}"
    )
