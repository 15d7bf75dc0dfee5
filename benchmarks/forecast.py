"""Forecast against measured: peak memory and seconds of training, over methods, models, batches and lengths.

Each case is `afina train` in a process of its own, ended once it has told how its forecast came out. Models but the
starter and minilm, a classifier, are random, of 30 M to 1 B parameters; rows are words, of equal length but for one
token in ten. Beyond 0.5 B parameters full fine-tuning must be refused.

    python benchmarks/forecast.py [--only SUBSTRING] [--json]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

# hidden, inner, layers, heads, heads of keys and values
SIZES = {
    "30M": (384, 1024, 6, 6, 6),
    "120M": (768, 2048, 12, 12, 12),
    "360M": (960, 2560, 32, 15, 5),
    "420M": (1280, 3584, 20, 20, 4),
    "1B": (2048, 5632, 20, 32, 4),
}
# model, method, rows a step, tokens a row, steps
CASES = [
    ("starter", "lora", 8, 128, 8),
    ("starter", "lora", 8, 512, 3),
    ("starter", "lora", 1, 1024, 6),
    ("starter", "lora", 32, 64, 4),
    ("starter", "full", 8, 128, 10),
    ("starter", "full", 4, 512, 10),
    ("starter", "head", 8, 256, 6),
    ("starter", "qlora", 8, 256, 3),
    ("30M", "lora", 8, 128, 20),
    ("30M", "lora", 16, 64, 20),
    ("30M", "lora", 2, 1024, 8),
    ("30M", "full", 8, 128, 10),
    ("30M", "full", 2, 512, 10),
    ("120M", "lora", 4, 256, 6),
    ("120M", "full", 8, 256, 10),
    ("120M", "head", 8, 128, 6),
    ("360M", "lora", 8, 128, 4),
    ("360M", "lora", 4, 256, 4),
    ("360M", "full", 4, 128, 10),
    ("360M", "head", 4, 256, 4),
    ("420M", "lora", 4, 256, 3),
    ("420M", "full", 2, 256, 10),
    ("420M", "full", 8, 64, 10),
    ("420M", "qlora", 4, 256, 3),
    ("1B", "lora", 4, 128, 3),
    ("1B", "lora", 1, 512, 4),
    ("1B", "qlora", 4, 128, 3),
    ("1B", "head", 4, 128, 4),
    ("1B", "full", 4, 128, 2),
    ("minilm", "lora", 8, 128, 20),
    ("minilm", "lora", 32, 32, 20),
    ("minilm", "lora", 8, 400, 6),
    ("minilm", "full", 16, 128, 10),
    ("minilm", "head", 16, 128, 20),
]
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "that",
    "on",
    "with",
    "as",
    "are",
    "by",
    "this",
    "it",
    "from",
    "at",
    "be",
    "was",
    "an",
]
MEMORY, UNDER, TIME = 0.10, 0.05, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose words contain this")
    parser.add_argument("--models", type=Path, help="keep the random models in this folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = options.models or folder
        found = []
        for case in CASES:
            if options.only in f"{case[0]} {case[1]} {case[2]}x{case[3]}":
                warm()
                found.append(one(*case, folder, models))
                if not options.json:
                    print(line(found[-1]), flush=True)
    if options.json:
        print(json.dumps(found))
        return
    cases = [each for each in found if "measured" in each]
    within = [each for each in cases if -UNDER <= each["memory"] <= MEMORY]
    timely = [each for each in cases if abs(each["time"]) <= TIME]
    print(f"{len(cases)} cases; memory within -5 and +10 %: {len(within)}; time within 25 %: {len(timely)}")
    print(machine())


def warm() -> None:
    """Measures the machine now: a shared one is not as fast from one minute to the next."""
    from afina.core.device import cache_folder, pick_device, pick_dtype
    from afina.forecast.benchmark import measured

    path = cache_folder() / "speed.json"
    path.unlink(missing_ok=True)
    place = pick_device()
    measured(place, pick_dtype("auto", place, cache_folder())[0], cache_folder())


def one(model: str, method: str, batch: int, length: int, steps: int, folder: Path, models: Path) -> dict[str, Any]:
    classify = model == "minilm"
    data, out = folder / f"{length}-{classify}.jsonl", folder / f"run-{time.monotonic_ns()}"
    if not data.exists():
        write_rows(data, length, classify)
    base = str(random_model(model, models)) if model in SIZES else model
    flags = ["--method", "lora", "--quantize", "nf4"] if method == "qlora" else ["--method", method]
    flags += ["--task", "classify"] if classify else []
    flags += [
        "--train.batch_size",
        str(batch),
        "--train.rows",
        str(batch * steps),
        "--train.eval_steps",
        str(-(-steps // 2)),
    ]
    command = [
        sys.executable,
        "-m",
        "afina",
        "train",
        str(data),
        "--prompt",
        "{prompt}",
        "--completion",
        "{completion}",
    ]
    command += ["--base", base, "--out", str(out), *flags]
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
        while process.poll() is None and not (out / "forecast.json").exists():
            time.sleep(0.2)
        process.terminate()
        process.wait()
    case = {"model": model, "method": method, "batch": batch, "length": length, "steps": steps}
    if not (out / "forecast.json").exists():
        return case | {"refused": log.read_text().strip()[-600:]}
    found = json.loads((out / "forecast.json").read_text())
    subprocess.run(["rm", "-rf", str(out)], check=True)
    memory, seconds = found["forecast"]["memory_gb"]["training"], found["forecast"]["seconds"]
    measured = found["measured"]
    case |= {"forecast": found["forecast"], "measured": measured}
    return case | {"memory": memory / measured["memory_gb"] - 1, "time": seconds / measured["seconds"] - 1}


def line(case: dict[str, Any]) -> str:
    what = f"{case['model']:8} {case['method']:6} {case['batch']:3} x {case['length']:4} tokens"
    if "refused" in case:
        return f"{what}: ended before: {' '.join(case['refused'].split())[-260:]}"
    forecast, measured = case["forecast"], case["measured"]
    return (
        f"{what}: memory {forecast['memory_gb']['training']:5.2f} and "
        f"{measured['memory_gb']:5.2f} GB ({case['memory']:+4.0%}), "
        f"time {forecast['seconds']:5.1f} and {measured['seconds']:5.1f} s ({case['time']:+4.0%})"
    )


def write_rows(path: Path, length: int, classes: bool) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(120):
            words = max(2, length - 36 - draw.randrange(max(1, length // 10)))
            asked = words if classes else words // 2
            answer = f"class {number % 3}" if classes else " ".join(draw.choices(WORDS, k=words - asked))
            prompt = " ".join(draw.choices(WORDS, k=asked)) + f" {number}"
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def random_model(size: str, folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from afina.models.load import load_tokenizer

    path = folder / size
    if not path.exists():
        hidden, inner, layers, heads, few = SIZES[size]
        tokenizer = load_tokenizer("starter")[0].inner
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=few,
            vocab_size=49152,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


if __name__ == "__main__":
    main()
