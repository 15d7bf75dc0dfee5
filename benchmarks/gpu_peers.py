"""The peers of gpu.py: PEFT, PEFT with Liger's kernels, TRL with padding-free attention, Unsloth, where installed.

Each gives a step over rows (a whole optimiser step) and its model, on random weights of the same shape.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import ALPHA, RANK, RATE, TARGETS, padded
from gpu_models import Place, Shape, filled

from afina.data.template import Row

Step = Callable[[Sequence[Row]], Any]


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def pads(peer: str, place: Place) -> bool:
    """Whether its batches are padded: all are, but TRL's with FlashAttention, and Unsloth's own."""
    return peer in ("PEFT", "PEFT, Liger") or (peer == "TRL" and not has_flash(place))


def has_flash(place: Place) -> bool:
    return place.device.type == "cuda" and is_installed("flash_attn")


def transformers_model(shape: Shape, place: Place) -> Any:
    """With FlashAttention where it is installed, else torch's fused attention."""
    from transformers import AutoModelForCausalLM

    attention = "flash_attention_2" if has_flash(place) else "sdpa"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=place.dtype, attn_implementation=attention)
    model = model.to_empty(device=place.device)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(place.device)  # which no weights hold
    model.tie_weights()
    filled(model)
    return model.requires_grad_(False)


def peft_model(shape: Shape, place: Place) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(transformers_model(shape, place), config)


def batch_of(rows: Sequence[Row], place: Place) -> dict[str, torch.Tensor]:
    made = padded([{"ids": row.input_ids, "labels": row.labels} for row in rows])
    return {name: tensor.to(place.device) for name, tensor in made.items()}


def loop(model: Any, place: Place, micro: int) -> Step:
    """A plain loop over micro-batches of so many rows."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=place.device.type == "cuda")

    def step(rows: Sequence[Row]) -> Any:
        total = sum(sum(label != -100 for label in row.labels[1:]) for row in rows)
        loss: Any = 0.0
        for at in range(0, len(rows), micro):
            part = rows[at : at + micro]
            labelled = sum(sum(label != -100 for label in row.labels[1:]) for row in part)
            own = model(**batch_of(part, place)).loss * (labelled / total)
            own.backward()
            loss = loss + own.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def peft(shape: Shape, place: Place, micro: int) -> Step:
    return loop(peft_model(shape, place).train(), place, micro)


def liger(shape: Shape, place: Place, micro: int) -> Step:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    model = peft_model(shape, place).train()
    apply_liger_kernel_to_llama(model=model.base_model.model)
    return loop(model, place, micro)


def trl(shape: Shape, place: Place, micro: int) -> Step:
    """TRL's own step over one batch, its collator and its loss; padding-free where FlashAttention is installed."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=micro, learning_rate=RATE,
        bf16=place.dtype == torch.bfloat16, use_cpu=place.device.type == "cpu", report_to=[], save_strategy="no",
        completion_only_loss=True, max_length=None, padding_free=has_flash(place),
        disable_tqdm=True,
    )  # fmt: skip
    rows = {"input_ids": [[3, 4, 5]], "completion_mask": [[0, 1, 1]]}
    trainer = SFTTrainer(
        model=transformers_model(shape, place), args=arguments, train_dataset=Dataset.from_dict(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=_nothing(), pad_token="[PAD]", eos_token="[PAD]"),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.create_optimizer()
    model, collate = trainer.model.train(), trainer.data_collator

    def step(rows: Sequence[Row]) -> Any:
        loss: Any = 0.0
        for at in range(0, len(rows), micro):
            part = rows[at : at + micro]
            examples = [
                {"input_ids": row.input_ids, "completion_mask": [int(label != -100) for label in row.labels]}
                for row in part
            ]
            batch = {name: value.to(place.device) for name, value in collate(examples).items()}
            own = trainer.compute_loss(model, batch) * (len(part) / len(rows))
            own.backward()
            loss = loss + own.detach()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss

    return step


def _nothing() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]"))


def unsloth(shape: Shape, place: Place, micro: int) -> Step:
    """It reads a model from files, so these are written first; it changes transformers for good, so it comes last."""
    from unsloth import FastLanguageModel  # before anything of transformers is used again

    with tempfile.TemporaryDirectory() as folder:
        transformers_model(shape, place).save_pretrained(folder)
        model, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=4096, dtype=place.dtype, load_in_4bit=False, tokenizer_name=None
        )
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0, use_gradient_checkpointing=False
    )
    return loop(model.train(), place, micro)


# By name: the package that it takes, and its step.
PEERS: dict[str, tuple[str, Callable[[Shape, Place, int], Step]]] = {
    "PEFT": ("peft", peft),
    "TRL": ("trl", trl),
    "PEFT, Liger": ("liger_kernel", liger),
    "Unsloth": ("unsloth", unsloth),
}
