"""`afina adapters`."""

import argparse
import json
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError
from afina.ui.common import opening, positive, say


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=["list", "show", "diff", "combine", "rerank", "merge", "convert"],
        help="what lies in a folder; one adapter; two compared; a weighted sum; a lower rank; folded into the base; "
        "from a file of mlx-lm, LitGPT or loralib",
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run or adapter folders (list: where to look)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (combine, rerank, merge, convert)")
    parser.add_argument("--weights", metavar="W,W", help="combine: a weight for each adapter [1 each]")
    parser.add_argument(
        "--kind",
        default="svd",
        metavar="KIND",
        help="combine: linear, cat, svd, ties, dare_linear, dare_ties, the last three also with _svd [svd]",
    )
    parser.add_argument("--rank", type=positive, metavar="N", help="rank of the new adapter (combine, rerank)")
    parser.add_argument("--density", type=float, default=0.5, metavar="SHARE", help="ties, dare: what is kept [0.5]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="dare: which values are kept [0]")
    parser.add_argument(
        "--base", metavar="BASE", help="convert: what the file was trained on; merge: the base, where it has moved"
    )
    parser.add_argument("--force", action="store_true", help="merge: into a base that the adapter was not made for")
    parser.add_argument("--revision", metavar="REV", help="convert: branch, tag or commit of a hub base")
    parser.add_argument("--alpha", type=float, metavar="A", help="convert: loralib's lora_alpha")
    parser.add_argument("--parts", metavar="1,0,1", help="convert: loralib's enable_lora, for fused layers")
    parser.add_argument("--device", metavar="DEVICE", help="merge: cpu, cuda, mps")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="merge, convert: where downloaded models are kept [$AFINA_CACHE, else the user's cache folder]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


_RUNS_NEEDED = {
    "list": (0, 1), "show": (1, 1), "diff": (2, 2), "combine": (2, None), "rerank": (1, 1), "merge": (1, 1), "convert": (1, 1),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from afina.jobs import adapters

    action, runs = options.action, options.runs
    least, most = _RUNS_NEEDED[action]
    if len(runs) < least or (most is not None and len(runs) > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"up to {most}"
        raise SettingsError(f"afina adapters {action} takes {wanted} RUN, {len(runs)} were given", "see --help")
    if action in ("combine", "rerank", "merge", "convert") and not options.out:
        raise SettingsError(f"afina adapters {action} needs --out DIR", "give a new folder")
    for flag, (value, readers) in _reads(options).items():
        if value and action not in readers:
            raise SettingsError(f"afina adapters {action} does not read --{flag}", f"it is for {', '.join(readers)}")
    found: Any
    if action == "list":
        found = adapters.list_adapters(runs[0] if runs else Path("runs"))
    elif action == "show":
        found = adapters.show_adapter(runs[0])
    elif action == "diff":
        found = adapters.diff_adapters(*runs)
    elif action == "combine":
        weights = _numbers("--weights", options.weights) if options.weights else [1.0] * len(runs)
        path = adapters.combine_adapters(
            runs, weights, options.out, kind=options.kind, rank=options.rank, density=options.density, seed=options.seed
        )
        found = {"adapter": str(path)}
    elif action == "rerank":
        if not options.rank:
            raise SettingsError("afina adapters rerank needs --rank N", "give the new rank")
        found = {"adapter": str(options.out), "lost": adapters.rerank_adapter(runs[0], options.rank, options.out)}
    elif action == "convert":
        from afina.jobs.convert import convert_adapter

        if not options.base:
            raise SettingsError("afina adapters convert needs --base BASE", "give the base that it was trained on")
        path = convert_adapter(
            runs[0], options.out, base=options.base, alpha=options.alpha, revision=options.revision,
            parts=[bool(each) for each in _numbers("--parts", options.parts or "")], cache_dir=options.cache_dir,
        )  # fmt: skip
        found = {"adapter": str(path)}
    else:
        difference = adapters.merge_adapter(runs[0], options.out, **opening(options))
        found = {"model": str(options.out), "largest_difference_of_logits": difference}
        if not options.json:
            found["largest_difference_of_logits"] = f"{difference:.2g} of the largest logit"
    if options.json:
        say(json.dumps(found))
        return 0
    if action == "list":
        for entry in found:
            say(f"{entry['path']}: {entry['base']}, rank {entry['rank']}, {entry['parameters'] / 1e6:.2f} M parameters")
        return 0
    for key, value in found.items():
        if key == "layers" and action == "diff":
            for layer in value:
                say(f"  {layer['layer']:50} cosine {_shown(layer['cosine'])}  distance {_shown(layer['distance'])}")
        elif value not in (None, [], {}):
            say(f"{key.replace('_', ' '):28} {_shown(value)}")
    return 0


def _reads(options: argparse.Namespace) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Each flag's value, nothing where it was not given, and the actions that read it."""
    return {
        "out": (options.out, ("combine", "rerank", "merge", "convert")),
        "weights": (options.weights, ("combine",)),
        "kind": (options.kind != "svd", ("combine",)),
        "rank": (options.rank, ("combine", "rerank")),
        "density": (options.density != 0.5, ("combine",)),
        "seed": (options.seed, ("combine",)),
        "base": (options.base, ("convert", "merge")),
        "force": (options.force, ("merge",)),
        "revision": (options.revision, ("convert",)),
        "alpha": (options.alpha is not None, ("convert",)),
        "parts": (options.parts, ("convert",)),
        "device": (options.device, ("merge",)),
        "cache-dir": (options.cache_dir, ("merge", "convert")),
    }


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise SettingsError(f"{flag} {text!r} are not numbers", "give them with commas, such as 0.7,0.3") from None
