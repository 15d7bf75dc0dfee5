"""Rows prepared a second beside TRL's preparation of the same file, and memory while a large file is prepared.

python benchmarks/data_speed.py [--rows-count 1000000] [--peer-rows 20000] [--plot FILE] [--json]

Rows are generated: a question of a customer and its answer. Ours reads, renders, masks, tokenises and writes all of
them; TRL's SFTTrainer gets the first of them, as messages, with a model of one tiny layer, so that what is timed is
its preparation.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import common


def rows(count: int) -> Iterator[tuple[str, str]]:
    for i in range(count):
        asked = f"Order {i}: where is parcel {i * 7919 % count}? I have been waiting since Monday and nobody answers."
        yield asked, f"In depot {i % 97}; it leaves tomorrow morning and arrives in {i % 5 + 1} days."


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows-count", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=20_000)
    parser.add_argument("--plot", type=Path, help="SVG file of resident memory over the rows prepared")
    options = parser.parse_args()
    if options.worker:
        kind, _, value = options.worker.partition(":")
        print(json.dumps({"afina": afina, "trl": trl, "check": check}[kind](options, int(value))))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        result = {"machine": common.machine()}
        peer, count = options.peer_rows, options.rows_count
        for name, program, n in (
            ("trl", "trl", peer),
            ("afina_same_rows", "afina", peer),
            ("afina", "afina", count),
            ("check", "check", min(count, 200_000)),
        ):
            result[name] = common.worker(__file__, f"{program}:{n}", options)
    result["times_as_fast"] = result["afina_same_rows"]["rows_a_second"] / result["trl"]["rows_a_second"]
    result["times_as_fast_whole"] = result["afina"]["rows_a_second"] / result["trl"]["rows_a_second"]
    if options.plot:
        plot(result["afina"]["memory"], options.plot)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(result["machine"])
    print(f"TRL, {peer:,} rows: {result['trl']['rows_a_second']:,.0f} rows/s")
    print(
        f"Afina, the same rows: {result['afina_same_rows']['rows_a_second']:,.0f} "
        f"rows/s, {result['times_as_fast']:.1f} times"
    )
    ours = result["afina"]
    print(
        f"Afina, {count:,} rows: {ours['rows_a_second']:,.0f} rows/s, {result['times_as_fast_whole']:.1f} times as fast"
    )
    print(
        f"resident memory after a tenth of the rows {ours['gb_at_a_tenth']:.3f} GB, at most {ours['gb_at_most']:.3f} GB"
    )
    print(f"a second time, from the cache: {ours['seconds_again']:.1f} s instead of {ours['seconds']:.1f}")
    print(
        f"afina data check: {result['check']['rows_a_second']:,.0f} "
        f"rows/s, {result['check']['bytes_a_row']:.0f} bytes a row"
    )


def write(path: Path, count: int, messages: bool) -> Path:
    with path.open("w") as file:
        for asked, answer in rows(count):
            row = {"prompt": asked, "completion": answer}
            if messages:
                row = {
                    "prompt": [{"role": "user", "content": asked}],
                    "completion": [{"role": "assistant", "content": answer}],
                }  # type: ignore[assignment]
            file.write(json.dumps(row) + "\n")
    return path


class Watch(threading.Thread):
    """Resident memory, five times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self.going, self.begun = True, time.perf_counter()

    def run(self) -> None:
        from afina.core.device import memory_gb

        while self.going:
            self.seen.append((time.perf_counter() - self.begun, memory_gb()))
            time.sleep(0.2)


def afina(options: argparse.Namespace, count: int) -> dict[str, object]:
    from afina.data.load import load_data
    from afina.data.settings import DataSettings
    from afina.models.load import load_base

    base = load_base("starter")
    path = write(options.shared / f"{count}.jsonl", count, messages=False)
    watch = Watch()
    watch.start()
    begun = time.perf_counter()
    data = load_data(DataSettings(path=path), base, cache_dir=options.shared)
    seconds = time.perf_counter() - begun
    watch.going = False
    watch.join()
    assert len(data.train) + len(data.held_out) == count
    memory = [(at / seconds, gb) for at, gb in watch.seen]
    begun = time.perf_counter()
    load_data(DataSettings(path=path), base, cache_dir=options.shared)
    return {
        "rows_a_second": count / seconds,
        "seconds": seconds,
        "seconds_again": time.perf_counter() - begun,
        "tokens": data.train.tokens,
        "gb_at_a_tenth": max(gb for at, gb in memory if at <= 0.1),
        "gb_at_most": max(gb for _, gb in memory),
        "memory": memory[:: max(1, len(memory) // 200)],
    }


def check(options: argparse.Namespace, count: int) -> dict[str, float]:
    """`afina data check`, with its indexes of copies; their bytes a row."""
    from afina.data.quality.checks import check as check_rows
    from afina.data.quality.duplicates import Seen, Sketches
    from afina.data.settings import DataSettings
    from afina.models.load import load_tokenizer

    tokenizer, _ = load_tokenizer("starter")
    path = write(options.shared / f"{count}.jsonl", count, messages=False)
    begun = time.perf_counter()
    found = check_rows(DataSettings(path=path), tokenizer)
    seconds = time.perf_counter() - begun
    assert found.rows_kept == count
    seen, sketches = Seen(), Sketches()
    seen.add("a")
    sketches.add("a")
    a_row = 2 * seen.values().nbytes + sketches.values().nbytes
    return {"rows_a_second": count / seconds, "seconds": seconds, "bytes_a_row": a_row, "peak_gb": common.peak_gb()}


def trl(options: argparse.Namespace, count: int) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from afina.models.load import load_tokenizer

    tokenizer = load_tokenizer("starter")[0].inner
    path = write(options.shared / "messages.jsonl", count, messages=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    settings = SFTConfig(
        str(options.shared / "out"), report_to=[], max_length=1024, bf16=False, use_cpu=True, disable_tqdm=True
    )
    model = LlamaForCausalLM(config)
    begun = time.perf_counter()
    data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(options.shared / "hf"))
    trainer = SFTTrainer(model, args=settings, train_dataset=data, processing_class=tokenizer)
    seconds = time.perf_counter() - begun
    assert len(trainer.train_dataset) == count
    return {"rows_a_second": count / seconds, "seconds": seconds}


def plot(memory: list[tuple[float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot([100 * at for at, _ in memory], [gb for _, gb in memory])
    axes.set(xlabel="part of the preparation, %", ylabel="resident memory, GB", ylim=(0, None), xlim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
