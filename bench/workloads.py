"""What is asked for, and how much arithmetic its results need.

Three workloads, named in all of the bench's output:

    G   generation: 40 sources × layers 1…n (ℓ* = ℓ), entity-description, 20 new tokens
    N   next token: 64 sources × all ℓ × all ℓ*, token-identity, the distribution after the placeholder
    C   candidates: 64 sources × all layers (ℓ* = ℓ), entity-description, 20 answers scored

None has controls, so that a cell is a cell in every way that is compared.

**Needed tokens.** The roofline fraction sets the time of a workload against the time that its *results* need at the
least, so needed tokens are counted from what was asked and what came back, never by the engine, which could count its
own detours:

    G   every token that came back, once, through all blocks and the head. (The first of a cell needs less, the
        blocks above ℓ* and the head, and the last of a cell is never run: counting neither exception is simple,
        and with 20 tokens errs by 2 %.)
    N   a distinct cell is one token through the blocks above ℓ* and the head: below ℓ* all cells of a prompt are alike.
    C   a distinct cell is one token, as in N; and each candidate is its tokens but the last, through all blocks and
        the head. The last token of a candidate predicts nothing that is asked for.

Source passes, prefixes, padding and rows that are finished while others go on are in the time and not in the count:
they are what is to be kept small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

MODEL = "smollm2-135m"
NEW_TOKENS = 20
SOURCE_TOKENS = range(5, 9)
CANDIDATE_TOKENS = range(1, 5)

# Distinct, 5 to 8 tokens each (checked with the tokenizer at run time), the last token never the first.
SOURCES = (
    "Diana, Princess of Wales",
    "Alexander the Great of Macedon",
    "the city of New York",
    "Barack Obama was the president",
    "the Eiffel Tower in Paris",
    "William Shakespeare, the English playwright",
    "the Roman Empire in Europe",
    "the painter Leonardo da Vinci",
    "I once met Marie Curie",
    "a lecture by the physicist Albert Einstein",
    "my trip to South Africa",
    "the Great Wall of China",
    "a song by Bob Dylan",
    "the singer Elvis Presley",
    "the river Nile in Egypt",
    "the high mountains of Switzerland",
    "a letter from Jane Austen",
    "the novels of Charles Dickens",
    "the composer Johann Sebastian Bach",
    "an island in the Pacific",
    "a photograph of the capital of Japan",
    "a visit to the king of Spain",
    "a small museum in Amsterdam",
    "the bridges of San Francisco",
    "the philosopher Immanuel Kant",
    "a speech by Winston Churchill",
    "the ships of Christopher Columbus",
    "the American inventor Thomas Edison",
    "a film by Charlie Chaplin",
    "the football club of Liverpool",
    "a car made by Toyota",
    "the software company named Microsoft",
    "the telephone made by Apple",
    "a bottle of red wine",
    "the giant planet called Jupiter",
    "the rings and moons of Saturn",
    "a cup of green tea",
    "the colour of a banana",
    "an old piano by Steinway",
    "a walk through the streets of Barcelona",
    "the long sandy beaches of Brazil",
    "a slow train across Siberia",
    "the ancient pyramids of Mexico",
    "the ruined temples of Cambodia",
    "an opera by Giuseppe Verdi",
    "the boxer Muhammad Ali",
    "the swimmer Michael Phelps",
    "a queen of ancient Egypt",
    "the last emperor of Rome",
    "stories about the gods of Greece",
    "a poem by Emily Dickinson",
    "the theory of Charles Darwin",
    "the red deserts of Australia",
    "an old castle in Scotland",
    "the thousand lakes of Finland",
    "a boat in the harbour of Sydney",
    "a fishing village in Norway",
    "a member of the parliament of Canada",
    "a short history of Portugal",
    "a pasta recipe from Italy",
    "the dark forests of Germany",
    "a night at the airport of Chicago",
    "a painting by Vincent van Gogh",
    "a book about the battle of Waterloo",
)

# 1 to 4 tokens each (checked), none of which begins all others.
CANDIDATES = (
    " country",
    " city",
    " river",
    " company",
    " actor",
    " singer",
    " British monarch",
    " American actor",
    " French painter",
    " ancient empire",
    " large city",
    " musical instrument",
    " famous football club",
    " German classical composer",
    " country in Europe",
    " river in Africa",
    " South Korean company",
    " president of the country",
    " kind of hot drink",
    " planet with many moons",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """A request: `options` go to `patchscopes.inspect` as they are."""

    name: str
    about: str
    sources: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def part(self, fraction: float) -> "Workload":
        """The same with a share of the sources, rounded up."""
        return Workload(self.name, self.about, self.sources[: ceil(fraction * len(self.sources))], self.options)


@dataclass(frozen=True, slots=True)
class MatrixParameters:
    """How many numbers of a model take part in matrix products per token: of each block, in order, and of the head."""

    blocks: tuple[int, ...]
    head: int

    def above(self, layer: int) -> int:
        """Of the blocks that a state written at `layer` still goes through, and the head."""
        return sum(self.blocks[layer:]) + self.head


def workloads(n_layers: int) -> dict[str, Workload]:
    """All workloads by name, for a model of that many layers."""
    describe = "entity-description"
    return {
        "G": Workload(
            "G",
            f"40 sources × layers 1…{n_layers}, {NEW_TOKENS} new tokens",
            SOURCES[:40],
            {"prompt": describe, "source_layers": range(1, n_layers + 1), "max_new_tokens": NEW_TOKENS, "controls": ()},
        ),
        "N": Workload(
            "N",
            "64 sources × all ℓ × all ℓ*, next token",
            SOURCES,
            {"prompt": "token-identity", "target_layers": "all", "readout": "next-token", "controls": ()},
        ),
        "C": Workload(
            "C",
            f"64 sources × all layers × {len(CANDIDATES)} candidates",
            SOURCES,
            {"prompt": describe, "readout": "candidates", "candidates": list(CANDIDATES), "controls": ()},
        ),
    }


def check_lengths(tokenizer: Any) -> None:
    """Raise ValueError unless the texts of this file are as long as it says, in tokens of `tokenizer`."""
    for texts, allowed in ((SOURCES, SOURCE_TOKENS), (CANDIDATES, CANDIDATE_TOKENS)):
        if len(set(texts)) < len(texts):
            raise ValueError("two texts of the bench are the same")
        for text in texts:
            n_tokens = len(token_ids(tokenizer, text))
            if n_tokens not in allowed:
                raise ValueError(f"{text!r} is {n_tokens} tokens long, not {allowed.start} to {allowed.stop - 1}")


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone, without BOS."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def text_flops(parameters: MatrixParameters, n_tokens: int) -> int:
    """Needed for `n_tokens` generated tokens."""
    return 2 * n_tokens * parameters.above(0)


def next_token_flops(parameters: MatrixParameters, cells_at: Mapping[int, int]) -> int:
    """Needed for the next token of distinct cells, `cells_at[ℓ*]` of them at ℓ*."""
    return sum(2 * n_cells * parameters.above(layer) for layer, n_cells in cells_at.items())


def candidates_flops(parameters: MatrixParameters, cells_at: Mapping[int, int], lengths: Sequence[int]) -> int:
    """Needed to score candidates of `lengths` tokens at distinct cells, `cells_at[ℓ*]` of them at ℓ*."""
    n_tokens = sum(length - 1 for length in lengths)
    return next_token_flops(parameters, cells_at) + text_flops(parameters, n_tokens * sum(cells_at.values()))
