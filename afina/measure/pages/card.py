"""The model card in the adapter's folder, from the files of the run."""

from pathlib import Path
from typing import Any

import yaml

from afina.core.config import read_yaml
from afina.core.errors import counted
from afina.core.files import read_json, write_atomic
from afina.measure.pages.summary import general_lines, table, verdict
from afina.training.settings import METHOD_NAMES


def write_card(run: Path, evaluation: dict[str, Any] | None = None) -> None:
    """Writes `adapter/README.md`: the adapter, its data, how to prompt it, and, once evaluated, how good it is.
    `evaluation` is by default the one in the folder, if any."""
    config = read_yaml(run / "config.yaml")
    facts = read_json(run / "adapter" / "afina.json")
    if evaluation is None and (run / "evaluation.json").exists():
        evaluation = read_json(run / "evaluation.json")
    write_atomic(run / "adapter" / "README.md", _card(config, facts, evaluation))


def _card(config: dict[str, Any], facts: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    base, rows, method = facts["base"], facts["rows"], config["method"]
    # PEFT loads adapters, not weights of the base that were trained.
    known = {
        "library_name": "peft" if method == "lora" else None,
        "base_model": base["hub_id"],
        "license": base["licence"],
    }
    head = yaml.safe_dump({name: value for name, value in known.items() if value}, sort_keys=False).strip()
    lora = config["lora"]
    what = f"Rank {lora['rank']}, alpha {lora['alpha']:g}"
    if method != "lora":
        what = "The trained weights, for `afina generate` and `afina eval`"
    quantised = f", on the base quantised to {config['quantize']}" if config["quantize"] else ""
    templates = [f"- {name}: `{value}`" for name, value in facts["data"].items() if value is not None]
    lines = [
        "---", head, "---", "",
        f"# {base['name']} with {METHOD_NAMES[method]}", "",
        f"{what}, {facts['trainable_parameters']:,} trained parameters; trained on {counted(rows['train'], 'row')} of "
        f"{Path(config['data']['path']).name} with Afina {facts['afina']}{quantised}.", "",
        "It expects the base's chat template (included here) and these templates:", "",
        *(templates or ["- none: the rows' own messages, or prompt and completion"]),
    ]  # fmt: skip
    if evaluation:
        rows = f"{counted(evaluation['rows'], 'row')} of {Path(evaluation['data']).name}."
        lines += ["", "## Evaluation", "", f"{rows} {verdict(evaluation)}", ""]
        lines += ["| metric | base | adapted | difference | 95 % interval |", "|---|---:|---:|---:|---:|"]
        lines += [
            f"| {r['label']} | {r['base']} | {r['adapted']} | {r['difference']} | {r['interval']} |"
            for r in table(evaluation)
        ]
        lines += ["", *(f"- {line}" for line in [*evaluation["findings"], *general_lines(evaluation)])]
    return "\n".join(lines).rstrip() + "\n"
