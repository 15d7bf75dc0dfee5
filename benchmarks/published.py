"""The forecast's memory against figures that others published (docs/published.md has their addresses): nothing is
measured here.

python benchmarks/published.py
"""

from dataclasses import replace
from pathlib import Path

from afina.data.settings import DataSettings
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.machines import named
from afina.forecast.workload import Workload
from afina.jobs.fit import NO_DATA, with_method
from afina.lora.config import LoraConfig
from afina.models.skeleton import Skeleton, read_skeleton
from afina.settings import RunSettings
from afina.training.settings import TrainingSettings

SOME = "q_proj,v_proj"
# base, method, rows, tokens a row, activations computed twice, layers, GB, of whom
PUBLISHED = [
    ("llama-3.1-8b", "lora", 1, 512, False, SOME, 19.73, "LitGPT, A10G (measured)"),
    ("mistral-7b-v0.3", "lora", 2, 512, False, SOME, 20.66, "LitGPT, A10G (measured)"),
    ("llama-3.1-8b", "lora", 2, 128, True, "all-linear", 18.5, "torchtune, 24 GB (measured)"),
    ("llama-3.1-8b", "lora", 2, 2048, True, "all-linear", 17.4, "torchtune, 4090, compiled (measured)"),
    ("mistral-7b-v0.3", "qlora", 2, 512, False, SOME, 14.29, "LitGPT, A10G (measured)"),
    ("llama-3.1-8b", "qlora", 2, 512, False, SOME, 17.41, "LitGPT, A10G (measured)"),
    ("llama-3.1-8b", "qlora", 2, 2048, True, "all-linear", 7.9, "torchtune, 4090, compiled (measured)"),
    ("llama-3.1-8b", "full", 1, 256, True, "", 144.8, "BAdam, 18 bytes a parameter, without activations"),
    ("llama-3.1-70b", "lora", 1, 512, True, "all-linear", 160.0, "LLaMA-Factory and the hub's blog (rules)"),
    ("qwen2.5-72b", "lora", 1, 512, True, "all-linear", 217.7, "Qwen, over four cards (measured, of Qwen-72B)"),
    ("llama-3.1-70b", "qlora", 1, 512, True, "all-linear", 48.0, "LLaMA-Factory and the hub's blog (rules)"),
    ("qwen2.5-72b", "qlora", 1, 512, True, "all-linear", 61.4, "Qwen, GPTQ (measured, of Qwen-72B)"),
    ("llama-3.1-70b", "full", 1, 512, True, "", 1270.0, "LLaMA-Factory's rule, 18 bytes a parameter"),
]
# base, method, rows, tokens a row, activations computed twice, machine, tokens a second, of whom
SPEEDS = [
    ("llama-3.1-8b", "lora", 2, 2048, True, "24gb", 3083, "torchtune, 4090, compiled"),
    ("llama-3.1-8b", "lora", 4, 2048, True, "24gb", 2400, "Answer.AI, 4090 (of Llama 2 7B)"),
    ("llama-3.1-8b", "qlora", 2, 2048, True, "24gb", 2413, "torchtune, 4090, compiled"),
    (
        "llama-3.1-8b",
        "full",
        2,
        2048,
        True,
        "24gb",
        1650,
        "torchtune, 4090, compiled, 8-bit optimiser in the backward pass",
    ),
    ("qwen2.5-7b", "lora", 1, 2048, False, "80gb", 3151, "Qwen, A100 (of Qwen-7B)"),
    ("qwen2.5-72b", "qlora", 1, 2048, True, "80gb", 275, "Qwen, A100 (of Qwen-72B, GPTQ)"),
]


def foreseen(
    name: str, method: str, rows: int, tokens: int, twice: bool, layers: str, machine: str
) -> tuple[Skeleton, Forecast]:
    train = TrainingSettings(batch_size=rows, tokens_per_pass=rows * tokens, checkpoint_activations=twice)
    lora = LoraConfig(target_modules=layers) if layers else LoraConfig()
    settings = RunSettings(base=name, data=DataSettings(path=NO_DATA), train=train, lora=lora)
    work = Workload([tokens] * 64, 1.0, tokens, 0, 0.0, 0, 0.0, 0)
    base = read_skeleton(name, cache_dir=Path("none"))
    return base, forecast_training(
        base, with_method(settings, method), work, replace(named(machine), fused=False)
    )  # of programs whose operations are torch's


def main() -> None:
    print("base             method  rows x tokens  forecast, GB  published, GB  of whom")
    for name, method, rows, tokens, twice, layers, gb, whom in PUBLISHED:
        base, found = foreseen(name, method, rows, tokens, twice, layers, "80gb")
        memory = found.memory
        ours = memory.training / 1e9
        own = ""
        if method == "full":
            extra = (memory.weights + 4 * base.parameters) / 1e9
            own = f" (of which {extra:.1f} are the base kept beside it and the best weights)"
        print(f"{name:16} {method:6} {rows:5} x {tokens:5}  {ours:12.1f}  {gb:13.1f}  {whom}{own}")
    print("\nbase             method  rows x tokens  forecast and published, tokens a second, of whom")
    for name, method, rows, tokens, twice, machine, speed, whom in SPEEDS:
        _, found = foreseen(name, method, rows, tokens, twice, "all-linear", machine)
        ours = 64 * tokens / found.epoch_seconds
        print(f"{name:16} {method:6} {rows:5} x {tokens:5}  {ours:12.0f}  {speed:13}  {whom}")


if __name__ == "__main__":
    main()
