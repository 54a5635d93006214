"""Do the states of three countries hold their capitals? Each country stands in a sentence, not at position 0."""

import patchscopes as ps

COUNTRIES = {"Spain": "Madrid", "Japan": "Tokyo", "Canada": "Ottawa"}

model = ps.load("smollm2-135m")
sources = [
    ps.Source(f"Last year my sister moved to {country}", at=country, expect=(capital,))
    for country, capital in COUNTRIES.items()
]
results = ps.inspect(model, sources, prompt="The capital city of {}", controls=("random-state",), max_new_tokens=10)
for row in results:
    if row.expected:
        print(row.control or "state", row.token, row.source_layer, repr(row.text))
