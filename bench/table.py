"""The bench's report, for people."""

from typing import Any

GOALS = {
    ("G", "speedup_vs_one_at_a_time"): 60.0,
    ("G", "speedup_vs_nnterp"): 6.5,
    ("G", "roofline_fraction"): 0.80,
    ("N", "speedup_vs_official_batched"): 80.0,
    ("N", "roofline_fraction"): 0.85,
    ("C", "speedup_vs_full_forward"): 40.0,
    ("C", "roofline_fraction"): None,
}
FIRST_TEXT_S = 4.0
MIB = 2**20

Report = dict[str, Any]


def print_tables(report: Report) -> None:
    """Everything, in sections."""
    about = report["machine"]
    print(f"\n{about['processor']}, {about['cores']} cores, load {about['load_average']}; {report['commit']}")
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    print_rate(report["rate"])
    for one in report["workloads"]:
        print_workload(one)
    if "first_text" in report:
        print_first_text(report["first_text"])
    for one in report.get("curve", ()):
        print_curve(one)
    print(f"\n{report['minutes']:.1f} minutes")


def print_rate(rate: Report) -> None:
    """The roof: GFLOP/s of all routes."""
    print("\nfloat32 matrix rate on the model's layers, GFLOP/s")
    if "error" in rate:
        print(f"  failed: {rate['error']}")
        return
    rows = sorted({one["rows"] for one in rate["rates"]})
    print(f"  {'rows':<10}" + "".join(f"{n:>9,}" for n in rows))
    for route in dict.fromkeys(one["route"] for one in rate["rates"]):
        figures = {one["rows"]: one["gflops_per_s"] for one in rate["rates"] if one["route"] == route}
        print(f"  {route:<10}" + "".join(f"{figures[n]:>9.1f}" for n in rows if n in figures))
    for route, why in rate["missing_routes"].items():
        print(f"  {route}: {why}")
    again = f", {rate['noise']:.1%} between start and end" if "noise" in rate else ""
    print(f"  roof: {rate['flops_per_s'] / 1e9:.1f}, {rate['threads']} threads{again}")


def print_workload(one: Report) -> None:
    """Times, ratios beside their goals, memory, agreement."""
    if "error" in one:
        print(f"\n{one['workload']}  failed: {one['error']}")
        return
    print(f"\n{one['workload']}  {one['about']}: {one['sources']} sources, {one['cells']:,} cells")
    each = f", {one['ms_per_candidate']:.3f} ms a candidate" if one["ms_per_candidate"] else ""
    spread = f"{len(one['repeats'])} runs, spread {one['noise']:.1%}" if one["noise"] is not None else "one run"
    print(f"  {'engine':<28}{one['seconds']:>9.2f} s {one['ms_per_cell']:>9.3f} ms a cell{each}  ({spread})")
    print_other("one by one" if one["workload"] != "N" else "official, batch 64", one["baseline"])
    if "nnterp" in one:
        print_other(nnterp_name(one["nnterp"]), one["nnterp"])
    for (workload, figure), goal in GOALS.items():
        if workload == one["workload"]:
            print_ratio(figure, one[figure], goal)
    over = one["peak_rss_bytes"] - one["memory_after_load_bytes"]
    kept = "within" if one["memory_within_budget"] else "ABOVE"
    print(
        f"  peak memory {one['peak_rss_bytes'] / MIB:,.0f} MiB = after load {one['memory_after_load_bytes'] / MIB:,.0f}"
        f" + {over / MIB:,.0f}: {kept} the budget of {one['memory_budget_bytes'] / MIB:,.0f}"
    )
    reference = one["reference"]
    rows = ", ".join(f"{n:,} {status}" for status, n in one["statuses"].items())
    print(f"  rows: {rows}; as the reference: {reference['agreeing']} of {reference['cells']} cells tried")


def nnterp_name(other: Report) -> str:
    """nnterp with its version and best size, where it ran."""
    if "error" in other:
        return "nnterp"
    return f"nnterp {other['versions']['nnterp']}, batch {other['max_batch_size']}"


def print_other(name: str, other: Report) -> None:
    """A line for another way to the same cells."""
    if "error" in other:
        print(f"  {name:<28}not run: {other['error']}")
        return
    same = f", same tokens in {other['same_tokens']} of {other['compared']}" if other.get("compared") else ""
    print(f"  {name:<28}{other['seconds']:>9.2f} s {other['ms_per_cell']:>9.2f} ms each of {other['cells']:,}{same}")


def print_ratio(figure: str, value: float | None, goal: float | None) -> None:
    """A ratio and its goal, where it has one."""
    name = figure.replace("speedup_vs_", "× ").replace("_", " ")
    reached = "" if goal is None or value is None else f": {'reached' if value >= goal else 'not reached'}"
    beside = "" if goal is None else f"   (goal {goal:g}{reached})"
    print(f"  {name:<28}{'–' if value is None else f'{value:.2f}':>9}{beside}")


def print_first_text(first: Report) -> None:
    """The wait for the first text."""
    if "error" in first:
        print(f"\nfirst text  failed: {first['error']}")
        return
    verdict = "reached" if first["seconds"] <= FIRST_TEXT_S else "not reached"
    print(f"\nfirst text of `patchscopes inspect` after {first['seconds']:.2f} s  (goal {FIRST_TEXT_S:g}: {verdict})")


def print_curve(curve: Report) -> None:
    """The cost curve of one model."""
    print(f"\ncost curve, {curve['model']}")
    if "error" in curve:
        print(f"  failed: {curve['error']}")
        return
    print(f"  {'':<12}{'':<20}{'rows':>7}{'ms a row':>10}{'peak MiB':>10}")
    for point in curve["points"]:
        above = "" if point["memory_within_budget"] else "  above the budget"
        print(
            f"  {point['axis']:<12}{point['value']:<20}{point['rows']:>7,}{point['ms_per_row']:>10.2f}"
            f"{point['peak_rss_bytes'] / MIB:>10,.0f}{above}"
        )
    if curve["left_out"]:
        print(f"  left out, for time: {'; '.join(curve['left_out'])}")
