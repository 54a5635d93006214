"""What do the layers say that "Diana, Princess of Wales" is, and what would they say anyway?"""

import patchscopes as ps

model = ps.load("smollm2-135m")
results = ps.inspect(
    model,
    "Diana, Princess of Wales",
    prompt="entity-description",
    source_layers="0-12",
    controls=("unpatched", "text-only", "random-state"),
)
print(results)

frame = results.to_pandas()
print(frame[frame.control.isna()][["source_layer", "text"]].to_string(index=False))
results.plot().savefig("diana.png", dpi=150)
