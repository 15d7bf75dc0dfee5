"""The doctor, of the machine and of runs: each planted fault is found, and a healthy one is called so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_rows
from safetensors.torch import load_file, save_file

import afina
from afina.core.device import Card
from afina.core.errors import InputError
from afina.core.events import Finding
from afina.core.machine import MachineFacts, look
from afina.jobs import doctor as doctor_module
from afina.jobs.doctor import DoctorSettings, doctor, judge
from afina.runs.diagnosis import examine
from afina.ui.cli import main

HEALTHY = MachineFacts(
    afina="1",
    python="3.11",
    system="Linux x86_64",
    versions={"torch": "2.13.0", "transformers": "5.0"},
    outdated=(),
    processor="A processor",
    features=("avx2",),
    cores=4,
    threads=4,
    load=0.3,
    memory_limit=16 * 10**9,
    memory_free=12 * 10**9,
    swap_used=0,
    disk_free={"cache": 10**11, "this folder": 10**11},
    writable={"cache": True, "this folder": True},
    compiler="c++",
    gpu_build=None,
    gpus=(),
    unused_gpu=None,
    settings={},
    proxies=False,
)

PLANTED = {
    "too few threads": ({"threads": 1, "settings": {"OMP_NUM_THREADS": "1"}}, "threads", "unset OMP_NUM_THREADS"),
    "too many threads": ({"threads": 64}, "threads", "--threads 4"),
    "others compute": ({"load": 9.0}, "load", "end other programs"),
    "no memory": ({"memory_free": 10**9}, "memory", "close other programs"),
    "memory on the disk": ({"swap_used": 4 * 10**9}, "swap", "close other programs"),
    "full disk": ({"disk_free": {"cache": 10**8}}, "disk of cache", "--cache-dir"),
    "cache that cannot be written": ({"writable": {"cache": False}}, "writing to cache", "--cache-dir"),
    "folder that cannot be written": ({"writable": {"this folder": False}}, "writing to this folder", "--out"),
    "GPU that is not used": ({"unused_gpu": ("its driver is old", "update the driver")}, "GPU", "driver"),
    "old package": ({"outdated": ("torch 2.1, needed is >=2.6",)}, "packages", "pip install --upgrade 'torch'"),
}


def ill(findings: list[Finding]) -> dict[str, Finding]:
    return {each.what: each for each in findings if each.state != "ok"}


def test_a_healthy_machine_is_called_so() -> None:
    found = list(judge(HEALTHY))
    assert not ill(found)
    assert any("for cards was tested with an interpreter" in each.found for each in found if each.what == "GPU")


@pytest.mark.parametrize(("change", "what", "remedy"), PLANTED.values(), ids=PLANTED)
def test_planted_fault(change: dict, what: str, remedy: str) -> None:
    found = ill(list(judge(HEALTHY.model_copy(update=change))))
    assert list(found) == [what]
    assert remedy in found[what].remedy


def test_cards_are_told_with_their_memory_and_that_none_was_tried() -> None:
    card = Card(device="cuda:1", name="NVIDIA T4", memory=16 * 10**9, free=10**9, precision="fp16", reason="it is old")
    machine = HEALTHY.model_copy(update={"gpus": (card, card.model_copy(update={"device": "cuda:0", "free": 10**10}))})
    found = {each.what: each for each in judge(machine)}
    assert (found["GPU cuda:1"].state, found["GPU cuda:0"].state) == ("warning", "ok")
    assert found["GPU cuda:0"].found == "NVIDIA T4: 10.0 of 16.0 GB free, fp16 (it is old)"
    assert "on no card" in found["GPU"].found
    assert "slower" in found["kernels on cuda:0"].found  # there is no such card here, on which Triton could run
    assert "GPU cuda:0" not in {each.what for each in judge(HEALTHY)}


def test_real_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a compiler, with a damaged model in the cache, and one thread by the environment."""
    from afina.models.sources.catalogue import known_models
    from afina.models.sources.packages import package_path

    package = known_models()["starter"].package
    assert package is not None
    file = package_path(package, tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half of it")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor_module, "pick_dtype", lambda *_: (torch.float32, "so it was measured"))
    found = ill(doctor(DoctorSettings(cache_dir=tmp_path)).findings)
    assert "g++" in found["fused kernels"].remedy
    assert found["model starter"].remedy == "afina models pull starter"
    assert main(["doctor", "--cache-dir", str(tmp_path), "--json"]) == 1
    told = capsys.readouterr().out
    assert json.loads(told)["state"] == "wrong"
    assert str(tmp_path) not in told
    assert str(Path.home()) not in told


def test_facts_of_this_machine(tmp_path: Path) -> None:
    machine = look({"cache": tmp_path / "not" / "yet"})
    assert machine.threads == torch.get_num_threads()
    assert 0 < machine.memory_free <= machine.memory_limit
    assert machine.writable == {"cache": True}
    assert not machine.outdated


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examined")
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:03d}", "a": "red" if i % 2 else "blue"} for i in range(120)]
    data = {"path": write_rows(folder / "rows.jsonl", rows), "prompt": "{q}", "completion": "{a}"}
    train = {"epochs": 20, "learning_rate": 0.002}  # with which each of four seeds gets all right
    settings = {"base": str(tiny_folder), "precision": "fp32", "device": "cpu", "data": data, "train": train}
    afina.train(afina.RunSettings(out=folder / "run", **settings))
    return folder / "run"


def steps(run: Path, change: Callable[[dict], dict]) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [change(row) if row["event"] == "step" else row for row in rows]
    write_rows(run / "metrics.jsonl", rows)


def cut(run: Path, memory: float) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_rows(run / "metrics.jsonl", [{**row, "memory_gb": memory} for row in rows if row["event"] == "step"][:20])
    (run / "evaluation.json").unlink()


def weights(run: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    state = {name: change(name, value) for name, value in load_file(file).items()}
    save_file({name: value for name, value in state.items() if value is not None}, file)


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def evaluation(run: Path, **values: object) -> None:
    edit(run / "evaluation.json", **values)


def worse(run: Path) -> None:
    found = json.loads((run / "evaluation.json").read_text())
    found["difference"][found["main_metric"]]["verdict"] = "not distinguishable"
    (run / "evaluation.json").write_text(json.dumps(found))


def setting(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def held_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "heldout", "step": 999, "loss": 9.0, "perplexity": 1.0, "best": False}) + "\n")


def unlearned(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_rows(
        run / "metrics.jsonl",
        [{**row, "loss": 1 + row["step"] / 99} if row["event"] == "heldout" else row for row in rows],
    )


def cut_off(file: Path, at: bytes | None = None) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: content.index(at) if at else len(content) // 2])


# The twenty problems by number, where a run's files show them; those that Afina makes impossible are in the other
# tests.
PROBLEMS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "1 never stops": (
        lambda r: evaluation(r, findings=["It does not end its answers: 90 %"]),
        "evaluation",
        "does not end",
    ),
    "2 nothing labelled": (lambda r: steps(r, lambda s: {**s, "loss": 0.0}), "loss", "no token carried a label"),
    "3 long rows cut": (lambda r: setting(r, "too_long: error", "too_long: cut"), "data", "were truncated"),
    "4 another template": (
        lambda r: (r / "adapter/chat_template.jinja").write_text("{{ x }}"),
        "template",
        "not the one",
    ),
    "5 changes nothing": (
        lambda r: weights(r, lambda n, v: v * 0 if "lora_B" in n else v),
        "adapter",
        "every B is zero",
    ),
    "6 few bits": (lambda r: setting(r, "quantize: null", "quantize: nf4"), "merging", "quantised to nf4"),
    "7, 8 whole embeddings": (
        lambda r: edit(r / "adapter/adapter_config.json", modules_to_save=["embed_tokens", "lm_head"]),
        "adapter's size",
        "large",
    ),
    "9 out of memory": (lambda r: cut(r, 1e6), "end", "out of memory"),
    "9 killed": (lambda r: cut(r, 0.1), "end", "killed"),
    "10 out of memory in evaluation": (lambda r: (r / "evaluation.json").unlink(), "end", "the evaluation did not"),
    "11 loss": (
        lambda r: steps(r, lambda s: {**s, "loss": float("nan")} if s["step"] > 9 else s),
        "loss",
        "became nan at step 10",
    ),
    "11 weights": (lambda r: weights(r, lambda n, v: v * float("nan")), "adapter", "not finite"),
    "12 nothing trains": (lambda r: steps(r, lambda s: {**s, "grad_norm": 0.0}), "gradients", "no gradient"),
    "13 large batches": (lambda r: setting(r, "batch_size: 8", "batch_size: 128"), "batch", "128 rows per step"),
    "15 steps lost": (
        lambda r: steps(r, lambda s: {**s, "step": s["step"] + 3 * (s["step"] > 20)}),
        "steps",
        "one by one",
    ),
    "15 jump": (
        lambda r: steps(r, lambda s: {**s, "loss": 30.0 if s["step"] == 30 else s["loss"]}),
        "steps",
        "jumped at step 30",
    ),
    "16 overfitting": (held_out, "overfitting", "rose to 9.00"),
    "16 forgetting": (lambda r: evaluation(r, findings=["It has forgotten: …"]), "evaluation", "forgotten"),
    "17 rate too high": (lambda r: steps(r, lambda s: {**s, "loss": 1 + s["step"] / 9}), "learning rate", "rose from"),
    "17 rate too low": (lambda r: steps(r, lambda s: {**s, "loss": 5.0}), "learning rate", "hardly moved"),
    "18 rows not used": (
        lambda r: write_rows(r / "rejected.jsonl", [{"where": "line 1", "reason": "column 'a' is empty"}] * 60),
        "data",
        "is empty",
    ),
    "20 head lost": (
        lambda r: (
            edit(r / "adapter/afina.json", task="classify"),
            edit(r / "adapter/adapter_config.json", modules_to_save=["classifier"]),
        ),
        "adapter",
        "answer at random",
    ),
    "no better than its base": (worse, "evaluation", "not distinguishable"),
    "nothing learned": (unlearned, "learning", "at best after"),
    "half an adapter": (
        lambda r: cut_off(r / "adapter/adapter_model.safetensors"),
        "adapter/adapter_model.safetensors",
        "cannot be read",
    ),
    "no adapter": (lambda r: (r / "adapter/adapter_model.safetensors").unlink(), "adapter", "moved or deleted"),
    "half of adapter_config.json": (
        lambda r: cut_off(r / "adapter/adapter_config.json"),
        "adapter/adapter_config.json",
        "cannot be read",
    ),
    "half of afina.json": (lambda r: cut_off(r / "adapter/afina.json"), "adapter/afina.json", "cannot be read"),
    "half an evaluation": (lambda r: cut_off(r / "evaluation.json"), "evaluation.json", "cannot be read"),
    "half of the metrics": (lambda r: cut_off(r / "metrics.jsonl"), "metrics.jsonl", "how training ended"),
    "half a configuration": (lambda r: cut_off(r / "config.yaml", at=b"rning_rate:"), "config.yaml", "incomplete"),
    "half a forecast": (lambda r: cut_off(r / "forecast.json"), "forecast.json", "cannot be read"),
    "no configuration": (lambda r: (r / "config.yaml").unlink(), "config.yaml", "is missing"),
}


def test_a_good_run_is_called_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not ill(examine(trained))
    assert main(["doctor", str(trained)]) == 0
    with pytest.raises(InputError, match="contains no run"):
        examine(trained / "adapter")


@pytest.mark.parametrize(("plant", "what", "said"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem(plant: Callable[[Path], object], what: str, said: str, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    plant(run)
    matching = [each for each in examine(run) if each.what == what and said in each.found]
    assert matching, [(each.what, each.found) for each in examine(run)]


def test_rows_are_counted_once(trained: Path, tmp_path: Path) -> None:
    """Without a test split the held-out rows are evaluated, and none is tested."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert json.loads((run / "adapter/afina.json").read_text())["rows"] == {"train": 108, "held_out": 12, "test": 0}
    page = (run / "report.html").read_text()
    assert "validated on 12 held-out rows." in page
    assert "tested on" not in page
    write_rows(run / "rejected.jsonl", [{"where": "line 1", "reason": "column 'a' is empty"}] * 20)
    (found,) = [each.found for each in examine(run) if each.what == "data"]
    assert found.startswith("20 rows were not used, of 140;")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "7",
        "{}",
        '"x"',
        '{"event": "step"}',
        '{"event": "step", "loss": "x"}',
        "\xff\x00",
        "null",
        "[" * 200_000,
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "forecast.json",
        "rejected.jsonl",
        "adapter/afina.json",
        "adapter/adapter_config.json",
    ],
)
def test_files_of_any_content_are_examined(name: str, content: str, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / name).write_text(content, encoding="latin-1")
    assert isinstance(examine(run), list)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("predictions.jsonl", lambda text: '{"prompt": "\\u001b[2J"}\n' * 10, "where: Field required"),
        ("predictions.jsonl", lambda text: '{"where": 1}\n' + text, "where"),
        ("predictions.jsonl", lambda text: "[]\n", "dictionary"),
        ("config.yaml", lambda text: text + "train: {learning_rate: .nan}\n", "--train.learning_rate is nan"),
        ("config.yaml", lambda text: text + f"seed: {'9' * 30}\n", "--seed is 9"),
        ("config.yaml", lambda text: text + "lora: {rank: 0}\nthreads: -1\n", "--lora.rank is 0"),
    ],
)
def test_values_that_no_run_writes_are_found(
    name: str, change: Callable, said: str, trained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    keys = ("train:", "seed:", "lora:", "threads:")
    text = (run / name).read_text()
    if name == "config.yaml":
        settings = yaml.safe_load(text)
        settings = {key: value for key, value in settings.items() if f"{key}:" not in keys}
        text = yaml.safe_dump(settings)
    (run / name).write_text(change(text))
    found = [each for each in doctor(DoctorSettings(run=run)).findings if each.what == name]
    assert [each.state for each in found] == ["wrong"]
    assert said in found[0].found
