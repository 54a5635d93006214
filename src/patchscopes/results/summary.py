"""What stands under the tables: hits beside the controls' hits, counts by status, what was left out, what made it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from patchscopes.results.blocks import CONTROLS, FLAGS
from patchscopes.results.candidates import Candidates
from patchscopes.results.entry import first_line, nats, quoted, ranges
from patchscopes.results.rows import Record
from patchscopes.spec import SCHEMA, Row

MAX_FAILED_SOURCES = 20


def summary(results: Record) -> list[str]:
    """Every line under the tables, in order."""
    return [
        *hits(results),
        *_agreement(results),
        *_failed_sources(results),
        *_not_shown(results),
        *_warnings(results),
        legend(results),
        counts(results),
        caption(results),
    ]


def hits(results: Record) -> Iterator[str]:
    """How often an expected answer is in the text, or first among candidates; at which layers; and for each control.

    Rows in which the answer had leaked are counted apart (rule 18).
    """
    candidates = Candidates(results)
    cells = [row for row in results if candidates.leads(row)]
    if not candidates.n:
        yield from _hits(cells, "in")
        return
    yield from _hits(map(candidates.judged, cells), f"is the likeliest of {candidates.n} candidates in")
    written = [row for row in cells if row.control != "unpatched"]
    yield from _hits(map(candidates.judged_by_raise, written), "is raised most in")


def _hits(rows: Iterable[Row], said: str) -> Iterator[str]:
    judged = [row for row in rows if row.expected is not None]
    for name in dict.fromkeys(row.control for row in judged):
        of = [row for row in judged if row.control == name]
        fair = [row for row in of if "leaked" not in row.flags]
        leaks = [row for row in of if "leaked" in row.flags]
        apart = f" ({len(leaks):,} leaked, apart)" if leaks else ""
        leaked = f"; in {_n_hits(leaks)} leaked" if leaks else ""
        yield f"expected answer {said} {_n_hits(fair)} {name or 'cells'}{apart}{_by_layer(fair)}{leaked}"


def _n_hits(rows: Sequence[Row]) -> str:
    return f"{sum(bool(row.expected) for row in rows):,} of {len(rows):,}"


def _by_layer(rows: Sequence[Row]) -> str:
    """Where the hits are: ranges of ℓ, with how many where a layer has several rows."""
    totals = Counter(row.source_layer for row in rows if row.source_layer is not None)
    found = Counter(row.source_layer for row in rows if row.source_layer is not None and row.expected)
    if not found:
        return ""
    if max(totals.values()) == 1:
        return f", at ℓ = {ranges(list(found))}"
    runs: list[tuple[list[int], int]] = []
    for layer in sorted(found):
        if runs and runs[-1][1] == found[layer] and runs[-1][0][-1] == layer - 1:
            runs[-1][0].append(layer)
        else:
            runs.append(([layer], found[layer]))
    of = set(totals.values())
    each = f" of {of.pop()}" if len(of) == 1 else ""
    return ", at ℓ = " + ", ".join(f"{ranges(layers)} ({n}{each})" for layers, n in runs)


def _agreement(results: Record) -> Iterator[str]:
    """How often the likeliest next token is that of the source's own run (precision@1), and for each control."""
    judged = [row for row in results if row.agrees is not None]
    for name in dict.fromkeys(row.control for row in judged):
        of = [row for row in judged if row.control == name]
        n_agree = sum(bool(row.agrees) for row in of)
        surprisal = sum(row.surprisal_under_source or 0.0 for row in of) / len(of)
        yield (
            f"next token is the source run's own in {n_agree:,} of {len(of):,} {name or 'cells'}; mean surprisal under "
            f"the source {nats(surprisal)} nats"
        )


def _failed_sources(results: Record) -> Iterator[str]:
    failed = list({row.source_index: row for row in results if row.control is None and row.position is None}.values())
    for row in failed[:MAX_FAILED_SOURCES]:
        yield f"{row.status}: source {row.source_index} {quoted(row.source or '', 60)}: {first_line(row.reason)}"
    if len(failed) > MAX_FAILED_SOURCES:
        yield f"… and {len(failed) - MAX_FAILED_SOURCES:,} more such sources; .to_pandas() has all."


def _not_shown(results: Record) -> Iterator[str]:
    """What a table has no room for, though it was run: further draws, and samples of what stands above a table."""
    controls = [row for row in results if row.control is not None]
    draws = {row.draw for row in controls}
    if draws - {0}:
        names = ", ".join(dict.fromkeys(str(row.control) for row in controls if row.draw))
        yield f"draw 0 of {max(draws) + 1} of {names} is shown; .to_pandas() has all, and all are counted."
    once = [row for row in controls if row.source_layer is None and row.target_layer is None]
    samples = {row.sample for row in once}
    if samples - {0}:
        names = ", ".join(dict.fromkeys(str(row.control) for row in once))
        yield f"sample 0 of {max(samples) + 1} of {names} is shown; .to_pandas() has all, and all are counted."


def _warnings(results: Record) -> Iterator[str]:
    """The warnings, without those that a flag at the table tells already."""
    for warning in results.warnings:
        if not any(f"flag: {flag}" in warning for flag in FLAGS):
            yield f"warning: {warning}"


def legend(results: Record) -> str:
    """What the signs of these tables mean."""
    parts = ["ℓ: the layer read from, after ℓ blocks"]
    cells = [row for row in results if row.control is None]
    if any(row.source_layer != row.target_layer for row in cells):
        parts.append("ℓ*: the layer written to")
    else:
        parts[0] = "ℓ: the layer, after ℓ blocks, that is read from and written to"
    scored = any(row.candidate is not None for row in results)
    # Of candidates, where none is an expected answer, there is no mark.
    if any(row.expected or (row.expected is not None and not scored) for row in results):
        leaks = ", in brackets where it had leaked" if any("leaked" in row.flags for row in results) else ""
        where = "the likeliest candidate, or not, and its rank" if scored else "in the text, or not"
        parts.append(f"✓ ✗: the expected answer is {where}{leaks}")
    if scored:
        parts.append("ln p: log-probability of a candidate, over all its tokens, in nats")
        parts.append("Δ: ln p minus that of the same candidate where nothing is written")
        parts.append("… after candidates: there are more; .to_pandas() has all")
    if any(row.agrees is not None for row in results):
        parts.append("= ≠: the likeliest next token is that of the source's own run, or not")
    if any(row.entropy is not None for row in results):
        parts.append("H: entropy of the next token, in nats")
    if any(row.top is None and "\n" in (row.text or "") for row in results):
        parts.append("⏎: a line break")
    names = dict.fromkeys(row.control for row in results if row.control in CONTROLS)
    mapped = any(row.control == "zero" and row.mapping is not None for row in results)
    said = {**CONTROLS, "zero": "what the mapping makes of the zero vector: its bias"} if mapped else CONTROLS
    parts += [f"{name}: {said[name]}" for name in names if name is not None]
    return " · ".join(parts)


def counts(results: Record) -> str:
    """How many rows there are, by status (rule 21)."""
    n_cells = sum(row.control is None for row in results)
    by_status = ", ".join(f"{n:,} {status}" for status, n in results.counts.items()) or "none"
    interrupted = "interrupted, " if results.counts.get("skipped") else ""
    state = "" if results.complete else f" · {interrupted}not complete"
    parts = [f"{n_cells:,} of cells, {len(results) - n_cells:,} of controls"] if len(results) > n_cells else []
    n_candidates = Candidates(results).n
    parts += [f"a row per cell and candidate, of {n_candidates}"] if n_candidates else []
    kinds = f" ({'; '.join(parts)})" if parts else ""
    return f"{len(results):,} rows: {by_status}{state}{kinds}"


def caption(results: Record) -> str:
    """What made these rows (rule 22): model, weights, dtype, device, decoding, seed, schema."""
    model, spec = results.model, results.spec
    weights = str(model.get("weights") or "")
    parts = [
        f"model {model.get('id')}{_onwards(spec)}",
        weights if len(weights) <= 20 else f"{weights[:19]}…",
        str(model.get("dtype") or ""),
        str(model.get("device") or ""),
        _decoding(spec),
        f"seed {spec['seed']}" if "seed" in spec else "",
        SCHEMA,
    ]
    return " · ".join(part for part in parts if part)


def _onwards(spec: Mapping[str, object]) -> str:
    """The model that is written into and the mapping, where they are not the source's own and none."""
    target, mapping = spec.get("target"), spec.get("f")
    into = f" → {target.get('id')}" if isinstance(target, Mapping) else ""
    return f"{into} through {mapping.get('kind')}" if isinstance(mapping, Mapping) else into


def _decoding(spec: Mapping[str, object]) -> str:
    decoding = spec.get("decoding")
    if not isinstance(decoding, Mapping):
        return ""
    readout = spec.get("readout")
    if isinstance(readout, Mapping) and readout.get("kind") == "next-token":
        return "next token"
    if isinstance(readout, Mapping) and readout.get("kind") == "candidates":
        return "candidates"
    temperature = decoding.get("temperature")
    how = f"temperature {temperature}" if temperature else "greedy"
    return f"{how}, up to {decoding.get('max_new_tokens')} new tokens"
