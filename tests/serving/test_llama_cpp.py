"""Files for llama.cpp, read by llama.cpp: tiny merged models and adapters write the tokens there that Afina writes.

xllamacpp is no dependency: it is taken where it is installed, or in the environment of the benchmarks (make bench)."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gguf_adapter import FACTS, adapted

from afina.lora import load_adapter
from afina.lora.merging import merge_in_place
from afina.models import Base, load_base
from afina.models.batcher import Batcher
from afina.models.sampling import Likelihood, Sampling
from afina.serving.gguf import write_adapter, write_model

BESIDE = Path(__file__).parents[2] / ".venv-xllamacpp/bin/python"
LLAMA = sys.executable if find_spec("xllamacpp") else str(BESIDE) if BESIDE.exists() else ""
PROMPTS = [list(range(first, first + 17)) for first in (20, 60, 100, 140)]
NEW = 8
# Nats between two tokens that rounding may exchange, in models whose logits are 20 times what they were: llama.cpp
# rounds what is multiplied too, to 16 bits or to eight.
NEAR_16, NEAR_8 = 0.03, 1.0
READ = """
import json, sys, urllib.request, xllamacpp
asked, found = json.load(sys.stdin), []
for model, lora in asked["files"]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = model, 128, 1
    parameters.port, parameters.warmup = 0, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    if lora:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    server = xllamacpp.Server(parameters)
    how = {"n_predict": asked["new"], "temperature": 0, "ignore_eos": True, "return_tokens": True}
    own = []
    for prompt in asked["prompts"]:
        body = json.dumps({"prompt": prompt, **how}).encode()
        with urllib.request.urlopen(server.listening_address + "/completion", body) as answer:
            own.append(json.load(answer)["tokens"])
    found.append(own)
    del server
print("found", json.dumps(found))
"""


def prepare(folder: Path) -> None:
    """A merge, for llama.cpp reads no vocabulary of words over bytes without one; and a head that prefers some."""
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["model"]["vocab"]["ĠĠ"], found["model"]["merges"] = 259, [["Ġ", "Ġ"]]
    file.write_text(json.dumps(found), encoding="utf-8")
    state = load_file(folder / "model.safetensors")
    for name in state:
        if name in ("model.norm.weight", "transformer.ln_f.weight"):
            state[name] = 20 * (1 + state[name])
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def read_by_llama(*files: tuple[Path, Path | None]) -> list[list[list[int]]]:
    """The tokens that llama.cpp writes greedily to each prompt, of each model with its adapter."""
    named = [(str(model), str(lora) if lora else None) for model, lora in files]
    asked = json.dumps({"files": named, "prompts": PROMPTS, "new": NEW})
    done = subprocess.run([LLAMA, "-c", READ], input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("found "))[6:])


def written(base: Base) -> list[list[Likelihood]]:
    """The tokens that Afina writes, each with all others' likelihoods."""
    batcher = Batcher(base.model, base.tokenizer, len(PROMPTS))
    asked = [batcher.submit(prompt, NEW, Sampling(ignore_eos=True), top=320) for prompt in PROMPTS]
    while batcher.busy:
        batcher.step()
    return [request.likelihoods for request in asked]


def compare(base: Base, theirs: list[list[int]], near: float) -> None:
    """The same up to a token that is as likely as Afina's, but for so many nats; and many are the same."""
    agreed = 0
    for own, found in zip(written(base), theirs, strict=True):
        assert len(own) == len(found) == NEW
        first = next((i for i in range(NEW) if own[i].id != found[i]), NEW)
        agreed += first
        if first < NEW:
            others = dict(own[first].top)
            assert abs(others[own[first].id] - others[found[first]]) < near, (first, own[first].id)
    assert agreed >= NEW * len(PROMPTS) / 3


@pytest.mark.skipif(not LLAMA, reason="xllamacpp is not installed (make .venv-xllamacpp/ready)")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_llama_cpp_writes_the_same_tokens(family: str, tmp_path: Path) -> None:
    _, folder, _ = adapted(tmp_path, family, r=4, lora_alpha=8)
    prepare(tmp_path / "base")
    base = load_base(str(tmp_path / "base"), precision="fp32", device="cpu")
    plain, lora = tmp_path / "base.gguf", tmp_path / "lora.gguf"
    write_model(base, base.model.module.state_dict().items(), plain, "F16", FACTS)
    write_adapter(base, folder, lora, FACTS)
    with torch.no_grad():
        load_adapter(base.model.module, folder)
        merge_in_place(base.model.module)
    merged = {type: tmp_path / f"merged-{type}.gguf" for type in ("F16", "Q8_0")}
    for type, file in merged.items():
        write_model(base, base.model.module.state_dict().items(), file, type, FACTS)
    theirs = read_by_llama((plain, None), (plain, lora), *((file, None) for file in merged.values()))
    own = [load_base(str(file), precision="fp32", device="cpu") for file in merged.values()]
    for each, found, near in zip([base, *own], theirs[1:], (NEAR_16, NEAR_16, NEAR_8), strict=True):
        compare(each, found, near)
    assert theirs[0] != theirs[1]
