"""How long a user of the command waits for the first text.

    patchscopes inspect SOURCE --controls none --format jsonl      (all layers, 20 tokens)

is run in a process of its own; the clock runs from its start to the first line of standard output that holds a text:
Python, imports, loading, the self-check, planning and decoding are all in it. Files are in the system's cache, by one
run that is not counted. Reported are the median of the others, and their spread.

    python -m bench.first_text [--repeats 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from bench.workloads import MODEL, SOURCES


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds_to_first_text(options.model)
    times = [seconds_to_first_text(options.model) for _ in range(options.repeats)]
    median = statistics.median(times)
    report = {"seconds": median, "repeats": times, "noise": (max(times) - min(times)) / median, "model": options.model}
    print(json.dumps(report))


def seconds_to_first_text(model: str) -> float:
    """One run of the command, stopped as soon as its first text is out."""
    command = [sys.executable, "-m", "patchscopes", "inspect", SOURCES[0], "--model", model]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--controls", "none", "--format", "jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("text") is not None:
                elapsed = time.perf_counter() - start
                process.terminate()
                return elapsed
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} and wrote no text")


if __name__ == "__main__":
    main()
