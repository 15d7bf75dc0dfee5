"""How well `afina choose` foretells: its ranking of bases after short adaptations against that of whole trainings
(Kendall's tau).

Candidates are the starter, copies of it cut to fewer layers, and, where answers are classes, the encoder minilm. Whole
trainings are `afina train` on the same rows, ranked by the main score on rows kept apart.

    python benchmarks/choice.py --rows FILE [--only NAME] [--minutes M] [--json]

FILE lies in the folder of a data set, beside which those of sentiment_pt, mt_geneval_en_pt and banking77 lie.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine

LAYERS = (20, 10, 3)
# Flags of the data; a whole training sees so many passes of so many rows.
DATA: dict[str, tuple[str, list[str], int, bool]] = {
    "sentiment_pt": ("train.csv", ["--prompt", "{text}", "--completion", "{label}"], 800, True),
    "mt_geneval_en_pt": (
        "train.csv",
        ["--prompt", "Translate to Portuguese: {english}", "--completion", "{portuguese}"],
        700,
        False,
    ),
    "banking77": ("train.csv", ["--prompt", "{text}", "--completion", "{category}"], 1000, True),
}
TESTED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="a file of a data set that lies beside these")
    parser.add_argument("--only", default="")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--keep", type=Path, help="folder for the models and runs, which go on where they were cut off")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rows is None:
        print("not run: it takes the data sets (--rows)")
        return
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for name in DATA:
            if options.only in name:
                found.append(one(name, options, folder))
                if not options.json:
                    print("\n".join(lines(found[-1])), flush=True)
    if options.json:
        print(json.dumps(found))
    else:
        print(machine())


def one(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from scipy.stats import kendalltau

    file, flags, rows, classes = DATA[name]
    bases = ["starter", *(str(cut(layers, folder)) for layers in LAYERS), *(["minilm"] if classes else [])]
    data = [
        str(options.rows.parent.parent / name / file),
        *flags,
        "--limit",
        str(rows),
        "--test",
        "0.2",
        "--data.test_rows",
        str(TESTED),
    ]
    out = folder / name / "choice"
    done = afina(
        "choose", *data, "--bases", ",".join(bases), "--minutes", str(options.minutes), "--out", str(out), "--json"
    )
    choice = json.loads(done)
    tried = {each["base"]: each for each in choice["tried"]}
    trained = {}
    for base in bases:
        run = folder / name / base.replace("/", "--")
        if not (run / "evaluation.json").exists():
            epochs = "8" if base == "minilm" else "1"  # an encoder's passes are quick, and its head is new
            afina("train", *data, "--base", base, "--out", str(run), "--overwrite", "--epochs", epochs)
        evaluation = json.loads((run / "evaluation.json").read_text())
        last = json.loads((run / "metrics.jsonl").read_text().strip().splitlines()[-1])
        trained[base] = {"score": evaluation["adapted"][evaluation["main_metric"]], "seconds": last["seconds"]}
    predicted = [-tried[base]["probe"]["bits_after"] for base in bases]
    tau = float(kendalltau(predicted, [trained[base]["score"] for base in bases]).statistic)
    return {
        "data": name,
        "share": choice["share"],
        "metric": evaluation["main_metric"],
        "tau": tau,
        "trained": trained,
        "tried": tried,
    }


def lines(found: dict[str, Any]) -> list[str]:
    said = [f"{found['data']}: Kendall's tau {found['tau']:.2f} ({found['share']:.0%} of a whole training each)"]
    for base, trained in found["trained"].items():
        probe = found["tried"][base]["probe"]
        short = "–" if probe["adapted"] is None else f"{probe['adapted']:.3f}"
        said.append(
            f"  {Path(base).name:12} bits an answer {probe['bits_after']:7.2f}, "
            f"score then {short:>6} ({probe['seconds']:4.0f} s of training); "
            f"whole training {trained['score']:.3f} {found['metric']} ({trained['seconds']:4.0f} s)"
        )
    return said


def afina(*arguments: str) -> str:
    print("afina", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "afina", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def cut(layers: int, folder: Path) -> Path:
    """The starter's first `layers` layers."""
    import torch

    from afina.models.load import load_base
    from afina.models.through_transformers import as_transformers

    path = folder / f"starter-{layers}"
    if not path.exists():
        base = load_base("starter", precision="bf16", device="cpu")
        model = as_transformers(base.model.module)
        model.model.layers = torch.nn.ModuleList(list(model.model.layers)[:layers])
        model.config.num_hidden_layers = layers
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:layers]
        base.tokenizer.inner.save_pretrained(path)
        model.to(torch.bfloat16).save_pretrained(path)
    return path


if __name__ == "__main__":
    main()
