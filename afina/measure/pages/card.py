"""Model cards, from the files of a run: the one in the adapter's folder, and the one that is published with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from afina.core.config import read_yaml
from afina.core.errors import counted
from afina.core.files import read_json, write_atomic
from afina.measure.pages.summary import general_lines, label, table, verdict
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
        lines += [
            "",
            *_evaluated(evaluation, f"{counted(evaluation['rows'], 'row')} of {Path(evaluation['data']).name}"),
        ]
        lines += ["", *(f"- {line}" for line in [*evaluation["findings"], *general_lines(evaluation)])]
    return "\n".join(lines).rstrip() + "\n"


def _evaluated(evaluation: dict[str, Any], rows: str) -> list[str]:
    return [
        "## Evaluation", "", f"{rows}. {verdict(evaluation)}", "",
        "| metric | base | adapted | difference | 95 % interval |", "|---|---:|---:|---:|---:|",
        *(
            f"| {r['label']} | {r['base']} | {r['adapted']} | {r['difference']} | {r['interval']} |"
            for r in table(evaluation)
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What a published card says beside the run's own facts. `name` is the repository's, `base_model` the base's id on
    the hub and `commit` its commit, where that is known; `library` reads the main files; `about` are lines on how they
    are run, and `hashes` names what the weights are by SHA-256."""

    name: str
    base_model: str
    commit: str | None
    licence: str | None
    library: str
    is_adapter: bool
    rank: int | None
    hashes: dict[str, str]
    about: Sequence[str] = ()


def published_card(found: Published, facts: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """The card of what is uploaded: no row, no answer, no path, no name of a file of data."""
    head: dict[str, Any] = {
        "library_name": found.library,
        "base_model": found.base_model,
        "base_model_relation": "adapter" if found.is_adapter else "finetune",
        "license": found.licence,
        "tags": ["afina", "lora"],
    }
    if evaluation:
        head["model-index"] = [{"name": found.name.rpartition("/")[2], "results": [_result(evaluation)]}]
    commit = f" (commit {found.commit})" if found.commit else ""
    rank = f" with LoRA of rank {found.rank}" if found.rank else ""
    lines = [
        "---",
        yaml.safe_dump({name: value for name, value in head.items() if value}, sort_keys=False).strip(),
        "---", "",
        f"# {found.name.rpartition('/')[2]}", "",
        f"[{found.base_model}](https://huggingface.co/{found.base_model}){commit}, adapted{rank} by Afina.", "",
        *_data_facts(facts),
        *(f"- {what}: SHA-256 `{digest}`" for what, digest in found.hashes.items()),
    ]  # fmt: skip
    if evaluation:
        lines += ["", *_evaluated(evaluation, f"{counted(evaluation['rows'], 'row')} that were not trained on")]
        lines += ["", *(f"- {line}" for line in general_lines(evaluation))]
    if found.about:
        lines += ["", "## How to run it", "", *found.about]
    return "\n".join(lines).rstrip() + "\n"


def _result(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The scores, as the hub's leaderboards read them."""
    scores = {name: value for name, value in evaluation["adapted"].items() if isinstance(value, int | float)}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": "held-out rows of the run", "type": "private"},
        "metrics": [{"type": name, "value": value, "name": label(name)} for name, value in scores.items()],
    }


def _data_facts(facts: dict[str, Any]) -> list[str]:
    rows, data = facts.get("rows", {}), facts.get("data", {})
    counts = [f"{rows[part]:,} {words}" for part, words in _PARTS.items() if rows.get(part)]
    found = [f"- data: {', '.join(counts)}; kind of task: {facts.get('kind', 'generation')}"] if counts else []
    found += [f"- {name} template: `{data[name]}`" for name in ("system", "prompt", "completion") if data.get(name)]
    return found


_PARTS = {"train": "rows trained on", "held_out": "held out", "test": "in the test split"}
