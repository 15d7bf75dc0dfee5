"""Files of mlx-lm, LitGPT and loralib against their formulas, as those libraries hold and compute them."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import torch
import yaml
from conftest import save_tiny, tiny_module
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.config import build
from afina.core.errors import AdapterError, InputError, OutputError, VerificationFailed
from afina.jobs.adapters import convert as job
from afina.jobs.adapters._unpickled import unpickled
from afina.jobs.adapters.convert import ConvertAdapterSettings, convert
from afina.lora import load_adapter
from afina.ui.cli import main

IDS = torch.randint(3, 259, (1, 12), generator=torch.Generator().manual_seed(0))


def convert_adapter(source: Path, out: Path, **settings) -> None:
    convert(build(ConvertAdapterSettings, {"source": source, "out": out, **settings}))


def random(*shape: int) -> Tensor:
    return 0.3 * torch.randn(shape)


def with_deltas(kind: str, deltas: dict[str, Tensor]) -> Tensor:
    """The logits of the tiny model with ΔW (out, in) added to its weights."""
    model = tiny_module(kind)
    for path, delta in deltas.items():
        layer = model.get_submodule(path)
        layer.weight = nn.Parameter(layer.weight + (delta.T if hasattr(layer, "nf") else delta))
    with torch.no_grad():
        return model(IDS).logits


def converted(kind: str, folder: Path) -> Tensor:
    model = tiny_module(kind)
    load_adapter(model, folder)
    with torch.no_grad():
        return model(IDS).logits


def mlx_file(folder: Path, kind: str = "lora") -> dict[str, Tensor]:
    """Writes what mlx-lm writes; ΔW by path."""
    torch.manual_seed(0)
    folder.mkdir()
    state, deltas = {}, {}
    for path, inputs, outputs in (
        ("model.layers.1.self_attn.q_proj", 32, 32),
        ("model.layers.0.mlp.up_proj", 32, 64),
        ("model.embed_tokens", 259, 32),
    ):
        a, b = random(inputs, 3), random(3, outputs)
        state |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        deltas[path] = (5.0 * a @ b) if "embed" in path else 5.0 * (a @ b).T
    if kind == "dora":
        state = {name: value for name, value in state.items() if "embed" not in name}
        del deltas["model.embed_tokens"]
        for path in deltas:
            weight = tiny_module().get_submodule(path).weight.detach()
            magnitude = weight.norm(dim=1) * 1.5
            merged = weight + deltas[path]
            deltas[path] = merged * (magnitude / merged.norm(dim=1))[:, None] - weight
            state[f"{path}.m"] = magnitude
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "adapters.safetensors")
    settings = {"fine_tune_type": kind, "lora_parameters": {"rank": 3, "scale": 5.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return deltas


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    deltas = mlx_file(tmp_path / "mlx", kind)
    if kind == "lora":  # the embedding's adapter does not reach the tied head
        embedding = deltas.pop("model.embed_tokens")
        model = tiny_module()
        for path, delta in deltas.items():
            model.get_submodule(path).weight.data += delta
        words = model.get_input_embeddings()
        with torch.no_grad():
            expected = model(inputs_embeds=words(IDS) + embedding[IDS]).logits
    else:
        expected = with_deltas("llama", deltas)
    convert_adapter(tmp_path / "mlx", tmp_path / "ours", base=str(tiny_folder))
    assert torch.allclose(converted("llama", tmp_path / "ours"), expected, atol=1e-4)
    assert (expected - with_deltas("llama", {})).abs().max() > 0.01


def test_litgpt(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    (tmp_path / "lit").mkdir()
    at = "transformer.h.1."
    state = {
        f"{at}attn.qkv.lora_A": random(6, 32),
        f"{at}attn.qkv.lora_B": random(48, 3),  # of query (32) and value (16)
        f"{at}attn.proj.lora_A": random(3, 32),
        f"{at}attn.proj.lora_B": random(32, 3),
        f"{at}mlp.fc_2.lora_A": random(3, 32),
        f"{at}mlp.fc_2.lora_B": random(64, 3),
        "lm_head.lora_A": random(3, 32),
        "lm_head.lora_B": random(259, 3),
    }
    torch.save({"model": state}, tmp_path / "lit" / "lit_model.lora.pth")
    settings = {"lora_r": 3, "lora_alpha": 6, "lora_query": True, "lora_key": False, "lora_value": True}
    (tmp_path / "lit" / "hyperparameters.yaml").write_text(yaml.safe_dump(settings))

    def delta(name: str, ranks: slice = slice(None), rows: slice = slice(None)) -> Tensor:
        return 2.0 * state[f"{name}.lora_B"][rows] @ state[f"{name}.lora_A"][ranks]

    layer = "model.layers.1."
    expected = with_deltas(
        "llama",
        {
            f"{layer}self_attn.q_proj": delta(f"{at}attn.qkv", slice(0, 3), slice(0, 32)),
            f"{layer}self_attn.v_proj": delta(f"{at}attn.qkv", slice(3, 6), slice(32, 48)),
            f"{layer}self_attn.o_proj": delta(f"{at}attn.proj"),
            f"{layer}mlp.up_proj": delta(f"{at}mlp.fc_2"),
            "lm_head": delta("lm_head"),
        },
    )
    out = tmp_path / "ours"
    assert main(["adapters", "convert", str(tmp_path / "lit"), "--base", str(tiny_folder), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert torch.allclose(converted("llama", out), expected, atol=1e-4)
    assert main(["generate", str(out), "a07"]) == 0  # it knows its base, and only that
    other = save_tiny(tmp_path / "other", seed=1)
    assert main(["generate", str(out), "a07", "--base", str(other)]) == 2
    assert main(["adapters", "convert", str(tmp_path / "lit"), "--out", str(out)]) == 2
    with pytest.raises(OutputError, match="is not empty"):
        convert_adapter(tmp_path / "lit", out, base=str(tiny_folder))


def test_loralib_with_fused_layers(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "gpt2", "gpt2")
    torch.manual_seed(0)
    a, b = random(4, 32), random(64, 2)  # queries and values of c_attn
    up_a, up_b = random(2, 32), random(128, 2)
    state = {
        "transformer.h.0.attn.c_attn.lora_A": a,
        "transformer.h.0.attn.c_attn.lora_B": b,
        "transformer.h.1.mlp.c_fc.lora_A": up_a,
        "transformer.h.1.mlp.c_fc.lora_B": up_b,
    }
    torch.save(state, tmp_path / "lora.pt")
    # loralib's own formula: a grouped convolution, then zeros for the parts left alone.
    grouped = F.conv1d(a[None], b[..., None], groups=2)[0]
    fused = torch.zeros(96, 32)
    fused[:32], fused[64:] = grouped[:32], grouped[32:]
    deltas = {"transformer.h.0.attn.c_attn": 4.0 * fused, "transformer.h.1.mlp.c_fc": 4.0 * up_b @ up_a}
    convert_adapter(tmp_path / "lora.pt", tmp_path / "ours", base=str(base), alpha=8.0, parts=(True, False, True))
    expected = with_deltas("gpt2", deltas)
    assert torch.allclose(converted("gpt2", tmp_path / "ours"), expected, atol=1e-4)
    for wrong, message in (
        ({}, "does not say alpha"),
        ({"alpha": 8.0}, "is fused of 2 adapted parts"),
        ({"alpha": 8.0, "parts": (True, True, True)}, "is fused of 2 adapted parts"),
    ):
        with pytest.raises(AdapterError, match=message):
            convert_adapter(tmp_path / "lora.pt", tmp_path / "other", base=str(base), **wrong)


class Evil:
    def __reduce__(self):
        return (print, ("run!",))


def repacked(state: dict, path: Path, change: Callable[[bytes], bytes], how: int = ZIP_STORED) -> Path:
    """What torch.save writes, with another pickle in it."""
    saved = io.BytesIO()
    torch.save(state, saved)
    with ZipFile(saved) as archive, ZipFile(path, "w", how) as again:
        for name in archive.namelist():
            content = archive.read(name)
            again.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


def test_pickles_that_take_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides of nothing, zeros packed a thousandfold, values by the million, and bytes that are only claimed."""
    monkeypatch.setattr("afina.jobs.adapters._unpickled.UNPICKLED_BYTES", 64 << 20)
    monkeypatch.setattr("afina.jobs.adapters._unpickled.UNPICKLED_SECONDS", 0.5)
    state, path = {"q.lora_A": torch.ones(4, 4), "q.lora_B": torch.ones(4, 4)}, tmp_path / "a.pt"
    shape, strides, huge = b"K\x04K\x04\x86", b"K\x04K\x01\x86", b"J\0\0\0\x40"
    assert torch.equal(unpickled(repacked(state, path, lambda text: text))["q.lora_B"], state["q.lora_B"])
    for change in (
        lambda text: text.replace(strides, b"K\0K\0\x86").replace(shape, huge * 2 + b"\x86"),
        lambda text: text.replace(shape, huge + b"K\x04\x86").replace(strides, b"K\0K\x01\x86"),
        lambda text: text.replace(strides, huge + b"K\x01\x86"),
        lambda text: b"\x80\x02}(" + b"K\x01" * 4_000_000 + b"u.",
        lambda text: b"\x80\x02cbuiltins\nbytearray\n" + b"\x8a\x05\0\0\0\0\x01" + b"\x85R.",
        lambda text: b"\x80\x03B\xff\xff\xff\x7f" + b"\x01" * 10 + b".",
        lambda text: b"\x80\x02}q\0X\x05\0\0\0modelq\x01h\0s.",
    ):
        with pytest.raises(AdapterError, match=r"a\.pt (cannot be read|takes more than|contains no)"):
            unpickled(repacked(state, path, change))
    zeros = repacked({"q.lora_A": torch.zeros(1 << 26)}, path, lambda text: text, ZIP_DEFLATED)
    with pytest.raises(AdapterError, match=r"a\.pt (cannot be read|takes more than)"):
        unpickled(zeros)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AdapterError, match="not a regular file"):
        unpickled(path)


def test_what_is_not_understood_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(source: Path, message: str, **settings) -> None:
        with pytest.raises(InputError, match=message):
            convert_adapter(source, tmp_path / "out", base=str(tiny_folder), **settings)
        assert not (tmp_path / "out").exists()

    fails(tmp_path, "holds none of .*adapters.safetensors")
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    fails(tmp_path / "evil.pt", "cannot be read as plain tensors", alpha=1.0)
    assert "run!" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pt")
    fails(tmp_path / "list.pt", "contains no plain tensors by name", alpha=1.0)
    torch.save({"q.lora_A": random(2, 3)}, tmp_path / "half.pt")
    fails(tmp_path / "half.pt", "q.lora_B is missing", alpha=1.0)
    torch.save({"q.lora_A": random(2, 3), "q.lora_B": random(3, 2), "q.bias": random(3)}, tmp_path / "more.pt")
    fails(tmp_path / "more.pt", "q.bias is no adapter's", alpha=1.0)
    torch.save({"q_prj.lora_A": random(2, 3), "q_prj.lora_B": random(3, 2)}, tmp_path / "name.pt")
    fails(tmp_path / "name.pt", "q_proj", alpha=1.0)
    torch.save({"lm_head.lora_A": random(2, 3), "lm_head.lora_B": random(3, 2)}, tmp_path / "shape.pt")
    fails(tmp_path / "shape.pt", "has shape", alpha=1.0)
    one = {"lm_head.lora_A": random(2, 32), "lm_head.lora_B": random(259, 2)}
    torch.save(one, tmp_path / "one.pt")
    for alpha in (0.0, -3.0, float("nan"), float("inf")):
        fails(tmp_path / "one.pt", "--alpha is", alpha=alpha)
    for name, wrong in (
        ("flat", random(259)),
        ("empty", random(259, 0)),
        ("complex", random(259, 2) + 1j),
        ("sparse", random(259, 2).to_sparse()),
    ):
        torch.save(one | {"lm_head.lora_B": wrong}, tmp_path / f"{name}.pt")
        fails(tmp_path / f"{name}.pt", "have shapes|no plain tensors", alpha=1.0)
    torch.save({1: random(2, 2)}, tmp_path / "names.pt")
    fails(tmp_path / "names.pt", "no plain tensors by name", alpha=1.0)
    fails(tmp_path / "nowhere", "no such file")
    lit = tmp_path / "lit"
    lit.mkdir()
    good = {"lora_r": 2, "lora_alpha": 4, "lora_query": True, "lora_key": False, "lora_value": True}
    layer = "transformer.h.1.attn.qkv"
    state = {f"{layer}.lora_A": random(4, 32), f"{layer}.lora_B": random(48, 2)}
    for settings, names, words in (
        (good | {"lora_r": 8}, {}, "says rank 8"),
        (good | {"lora_r": 0}, {}, "lora_r is 0"),
        (good | {"lora_key": True}, {}, "says rank 2|does not fit"),
        (good, {"h.1": "h.7"}, "does not fit"),
        (good, {"attn.qkv": "mlp.fc_9"}, "does not fit"),
        (good, {"transformer.h.1.attn.qkv": "odd"}, "is not known"),
    ):
        (lit / "hyperparameters.yaml").write_text(yaml.safe_dump(settings))
        renamed = state
        for old, new in names.items():
            renamed = {name.replace(old, new): value for name, value in renamed.items()}
        if "mlp" in str(names):
            renamed = {name: value[:2] if "lora_A" in name else value for name, value in renamed.items()}
        torch.save({"model": renamed}, lit / "lit_model.lora.pth")
        fails(lit, words)
    mlx_file(tmp_path / "mlx", "dora")
    kept = (tmp_path / "mlx" / "adapters.safetensors").read_bytes()
    state = load_file(tmp_path / "mlx" / "adapters.safetensors")
    del state["model.layers.1.self_attn.q_proj.m"]
    save_file(state, tmp_path / "mlx" / "adapters.safetensors")
    fails(tmp_path / "mlx", "the factors or the magnitude is missing")
    (tmp_path / "mlx" / "adapters.safetensors").write_bytes(kept)
    for scale in (0, -1, float("nan")):
        (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": scale}}))
        fails(tmp_path / "mlx", "scale is|is not mlx-lm's")
    fails(tmp_path / "mlx", "leave --alpha and --parts out", alpha=3.0)
    (tmp_path / "mlx" / "adapter_config.json").write_text('{"fine_tune_type": "full", "lora_parameters": {"scale": 1}}')
    fails(tmp_path / "mlx", "fine_tune_type is 'full'")
    (tmp_path / "mlx" / "adapter_config.json").write_text("{}")
    fails(tmp_path / "mlx", "is not mlx-lm's")


def pickled(folder: Path, base: Path, dtype: torch.dtype = torch.float32, **settings) -> Tensor:
    """Writes an adapter as PEFT did before safetensors; its logits."""
    twin = get_peft_model(tiny_module(), PeftConfig(r=3, lora_alpha=6, **settings))
    torch.manual_seed(1)
    for parameter in twin.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    twin.save_pretrained(folder)
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: value.to(dtype) for name, value in state.items()}, folder / "adapter_model.bin")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with torch.no_grad():
        return twin.eval()(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]},
    ],
    ids=["plain", "head", "saved", "dora", "tokens"],
)
def test_peft_before_safetensors(
    settings: dict, dtype: torch.dtype, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = pickled(tmp_path / "old", tiny_folder, dtype, **settings)
    assert main(["generate", str(tmp_path / "old"), "a07"]) == 2
    message = capsys.readouterr().err
    assert "adapter_model.bin only, a pickle" in message
    assert f"`afina adapters convert {tmp_path / 'old'} --out DIR`" in message
    out = tmp_path / "new"
    assert main(["adapters", "convert", str(tmp_path / "old"), "--out", str(out)]) == 0  # its base is in its files
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(converted("llama", out), expected, atol=tolerance * expected.abs().max())
    assert main(["generate", str(out), "a07"]) == 0
    theirs = PeftModel.from_pretrained(tiny_module(), out)
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, converted("llama", out), atol=1e-4)


def test_a_bin_file_that_is_not_plain(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old"
    pickled(old, tiny_folder, target_modules=["q_proj"])
    path, config = old / "adapter_model.bin", (old / "adapter_config.json").read_text()
    good = torch.load(path, weights_only=True)
    name = next(iter(good))
    words = ["adapters", "convert", str(old), "--out", str(tmp_path / "new")]

    def fails(message: str, *more: str) -> None:
        assert main([*words, *more]) == 2
        found = capsys.readouterr()
        assert message in found.err
        assert "run!" not in found.out
        assert not (tmp_path / "new").exists()

    for state, message in (
        (good | {"x": Evil()}, "cannot be read as plain tensors"),
        (good | {name: good[name] * float("nan")}, f"{name} holds numbers that are not finite"),
        ({n: v for n, v in good.items() if n != name}, f"{name} is missing"),
        (good | {"base_model.model.other.lora_A.weight": good[name]}, "belongs to no layer of this base"),
        ({}, "there is no adapter in it"),
        ({"step": torch.tensor(3.0), "optimizer": torch.zeros(4)}, "--alpha"),
        (good | {name: good[name].to(torch.int8)}, f"{name} (int8) holds whole numbers"),
    ):
        torch.save(state, path)
        fails(message, *(["--alpha", "1"] if state == {} else []))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    fails("is a git-lfs pointer")
    path.write_bytes(b"")
    fails("cannot be read as plain tensors")
    torch.save(good, path)
    fails("leave --alpha and --parts out", "--alpha", "3")
    for base, message in ((None, "does not name its base"), ("/home/alice/llama", "'/home/alice/llama'")):
        (old / "adapter_config.json").write_text(json.dumps(json.loads(config) | {"base_model_name_or_path": base}))
        fails(message)
        fails("name it with --base BASE")
    assert main([*words, "--base", str(tiny_folder)]) == 0
    assert main(["adapters", "convert", str(tmp_path / "new"), "--out", str(tmp_path / "newer")]) == 2
    assert "is in PEFT's format already" in capsys.readouterr().err
    mlx_file(tmp_path / "mlx")
    assert main(["adapters", "convert", str(tmp_path / "mlx"), "--out", str(tmp_path / "other")]) == 2
    assert "does not name its base" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "mlx"), "a"]) == 2
    assert "is mlx-lm's, not PEFT's" in capsys.readouterr().err


def test_a_conversion_that_went_wrong_is_found(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    mlx_file(tmp_path / "mlx")
    save = job.save_adapter

    def other_scale(module, config, folder: Path, *more) -> None:
        save(module, config, folder, *more)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 16}))

    monkeypatch.setattr(job, "save_adapter", other_scale)
    with pytest.raises(VerificationFailed, match="written and read back, is another"):
        convert_adapter(tmp_path / "mlx", tmp_path / "out", base=str(tiny_folder))
    assert not (tmp_path / "out").exists()
