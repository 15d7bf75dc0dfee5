"""Tiny random models and small files: everything here runs offline and in seconds."""

import copy
import functools
import gc
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

# For models this small threads only wait for each other; so also in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run on the processor: read where they are defined

import pytest
import torch
from forked import ForkedWorker
from tiny_tokenizer import CHATML as CHATML
from tiny_tokenizer import SPECIALS as SPECIALS
from tiny_tokenizer import byte_tokenizer

import afina
from afina.core.device import cache_folder
from afina.engine import kernels
from afina.models.load import Base, load_base

torch.set_num_threads(1)


def tiny_config(kind: str = "llama"):
    from transformers import BertConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config, T5Config

    small = {"vocab_size": 259, "max_position_embeddings": 512}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "llama":
        return LlamaConfig(**small, **wide, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2)
    if kind == "qwen3":
        return Qwen3Config(**small, **wide, num_key_value_heads=2, head_dim=16, eos_token_id=2)
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=259, n_positions=512, n_embd=32, n_layer=2, n_head=4, eos_token_id=2, bos_token_id=2
        )
    if kind == "gemma3":
        return Gemma3TextConfig(
            **small,
            **wide,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=8,
            eos_token_id=2,
        )
    if kind == "t5":
        return T5Config(
            vocab_size=259,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            eos_token_id=2,
        )
    return BertConfig(**small, **wide)


def tiny_module(kind: str = "llama", seed: int = 0):
    """A random model in evaluation mode; BERT as an encoder, T5 whole, the others with their language-model head."""
    model, random_state = _made(kind, seed)
    torch.set_rng_state(random_state)
    return copy.deepcopy(model)


@functools.cache
def _made(kind: str, seed: int):
    """The model, and what state its making left the random numbers in."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    maker = {"bert": AutoModel, "t5": AutoModelForSeq2SeqLM}.get(kind, AutoModelForCausalLM)
    model = maker.from_config(tiny_config(kind)).eval()
    if kind == "llama":
        model.get_input_embeddings().weight.data *= 20  # tied to the head: a frozen head this small could say nothing
    return model, torch.get_rng_state()


def save_tiny(folder: Path, kind: str = "llama", seed: int = 0, **tokenizer) -> Path:
    tiny_module(kind, seed).save_pretrained(folder)
    byte_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny-llama")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sanitise", action="store_true", help="compile the kernels with the sanitisers (make sanitise)")
    parser.addoption("--every-place", action="store_true", help="run every command in every odd place (ui/test_places)")
    parser.addoption(
        "--starter", action="store_true", help="walk through the page on the starter model (make check-page)"
    )
    parser.addoption("--pictures", help="folder for pictures of each page (ui/studio/test_chromium)")
    parser.addoption("--walked", help="folder for the workspace of ui/studio/test_chromium")


def sanitise() -> None:
    """The kernels are compiled with the sanitisers."""
    kernels._FLAGS = ("-O1", "-g", *kernels._FLAGS[1:], "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    if config.getoption("--sanitise"):
        sanitise()


USER_CACHE = cache_folder()


def own_cache(folder: Path) -> Path:
    """A cache of a test's own at `folder`; what takes long to make or to fetch is that of all tests, and theirs the
    user's."""
    shared = cache_folder()
    folder.mkdir(parents=True)
    for name in ("kernels", "models"):
        (shared / name).mkdir(parents=True, exist_ok=True)
    for name in ("kernels", "models", "bf16_speedup.json", "speed.json"):
        if (shared / name).exists():
            (folder / name).symlink_to(shared / name)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared rows and a base's answers do not go into the user's cache. The kernels are compiled once, whichever
    cache a test has."""
    compiled = kernels.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "load", lambda cache: compiled(USER_CACHE if kernels.compiler() else cache))
        patch.setenv("AFINA_CACHE", str(own_cache(tmp_path_factory.getbasetemp() / "cache")))
        yield


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache without models, rows and answers."""
    found = own_cache(tmp_path / "cache")
    (found / "models").unlink()
    return found


@pytest.fixture(scope="module", autouse=True)
def _heap_is_frozen() -> None:
    """Imports fill the heap; a collection in a test, which is to free a model, need not go through them."""
    gc.collect()
    gc.freeze()


def read(sequences, prompts: list[list[int]], updates: list | None = None, most: int = 10**6) -> torch.Tensor:
    """Adds prompts and reads them; the logits (len(prompts), V) after them."""
    sequences.add(prompts, updates or [None] * len(prompts))
    found: dict[int, torch.Tensor] = {}
    while len(found) < len(prompts):
        whole, logits = sequences.read(most)
        found |= zip(whole, logits, strict=True)
    return torch.stack([found[i] for i in sorted(found)])


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of `afina.runs.worker` begin with the libraries imported."""
    forked = SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE)
    monkeypatch.setattr("afina.runs.worker.subprocess", forked)


@pytest.fixture
def forked_work() -> Iterator[None]:
    """The same of work of the page; there is a heavy job `wait`."""
    from studio_works import forking

    with forking():
        yield


@pytest.fixture(scope="session")
def coloured(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of the page with the run `colours`, which those who use it leave as it was (`studio_opened.tidy`)."""
    from studio_opened import trained

    root = tmp_path_factory.mktemp("studio") / "workspace"
    trained(root, tiny_folder)
    return root


@pytest.fixture
def tiny(tiny_folder: Path) -> Base:
    return load_base(str(tiny_folder), precision="fp32", device="cpu")


@pytest.fixture(scope="session")
def starter() -> Base:
    """The real starter model, where it was downloaded before (`afina models pull starter`)."""
    from afina.models.sources.catalogue import known_models
    from afina.models.sources.packages import package_path

    package = known_models()["starter"].package
    if package is None or not package_path(package, USER_CACHE).exists():
        pytest.skip("the starter model is not in the cache; `afina models pull starter` fetches it")
    return load_base("starter", precision="fp32", device="cpu")


@pytest.fixture
def shared() -> Path:
    """The folder of real data sets beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    return folder


@pytest.fixture
def hostile() -> Path:
    """The folder of hostile files beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "cases" / "hostile"
    if not folder.is_dir():
        pytest.skip("the hostile files are not beside this checkout")
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A task that a tiny model learns in seconds: the answer is one of two words, by the first letter of the prompt."""
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "a": "red" if i % 2 else "blue"} for i in range(60)]
    return write_rows(tmp_path / "colours.jsonl", rows)


def generate(run: Path, prompts: list[str] | Path, **more) -> tuple[dict, ...]:
    """The answers to prompts, or to the rows of a file."""

    asked = {"data": prompts} if isinstance(prompts, Path) else {"prompts": prompts}
    return afina.generate(afina.GenerateSettings(run=run, **asked, **more)).rows


def evaluate(run: Path, data: Path, **more):

    return afina.evaluate(afina.EvaluateSettings(run=run, data=data, **more))


def merge_adapter(run: Path, out: Path, **more) -> float:
    """Writes the merged model to `out`; the largest difference of logits from the adapted one."""
    from afina.jobs.adapters.merge import MergeAdapterSettings, merge

    return merge(MergeAdapterSettings(run=run, out=out, **more)).differences["fp32"]
