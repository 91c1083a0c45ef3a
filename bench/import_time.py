"""How long `import atoll` and its first name take in a fresh interpreter, against numpy, which it stands on.

    python -m bench.import_time [--json FILE]

The promise: at most 0.3 s on two ordinary cores. Interleaved runs, medians, after one warm-up.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LINES = {"start": "pass", "numpy": "import numpy", "atoll": "import atoll; atoll.Job"}
LIMIT = 0.3  # seconds


def seconds(line: str) -> float:
    """Wall time of one interpreter that runs `line` and ends."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", line], check=True)  # noqa: S603  lines written above
    return time.perf_counter() - begin


def measure(times: int) -> dict[str, float]:
    """Median seconds of each line, above the interpreter's own start for the imports."""
    runs = [{name: seconds(line) for name, line in LINES.items()} for _ in range(times + 1)][1:]
    median = {name: statistics.median(run[name] for run in runs) for name in LINES}
    return {name: median[name] - median["start"] * (name != "start") for name in LINES}


def main() -> None:
    """Print the table, write it where asked, and fail above the limit."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="FILE")
    options.add_argument("--times", type=int, default=15)
    chosen = options.parse_args()
    took = measure(chosen.times)
    rows = [{"name": f"import {name}", "value": round(s, 4), "unit": "s"} for name, s in took.items()]
    rows[-1] |= {"ratio": round(took["atoll"] / took["numpy"], 2), "against": "import numpy"}
    print(*(json.dumps(row) for row in rows), sep="\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if took["atoll"] > LIMIT:
        sys.exit(f"import atoll took {took['atoll']:.2f} s, more than {LIMIT} s")


if __name__ == "__main__":
    main()
