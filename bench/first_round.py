"""How long a user waits: `atoll version`, and from the command to the end of the first round.

    python -m bench.first_round [--json FILE]

The promises, without PyTorch, on two ordinary cores with compiled byte code: 0.3 s and 2 s. The
job is the README's, on scikit-learn's digits. Interleaved runs, medians, after one warm-up.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = Path(__file__).parents[1] / "examples" / "digits.toml"
LIMITS = {"atoll version": 0.3, "command to first round": 2.0}  # seconds


def version() -> float:
    """Wall time of `atoll version`."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "atoll", "version"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def first_round() -> float:
    """Wall time from the command to the line that reports round 1."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "atoll", "simulate", str(JOB), "--set", "rounds=1"]
        begin = time.perf_counter()
        with subprocess.Popen(  # noqa: S603
            [*command, "--out", f"{folder}/run"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr is not None  # noqa: S101
            took = next((time.perf_counter() - begin for line in process.stderr if " 1/1 " in line), None)
    if process.returncode or took is None:
        sys.exit("the job failed: is scikit-learn installed?")
    return took


def main() -> None:
    """Print the table, write it where asked, and fail above a limit."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="FILE")
    options.add_argument("--times", type=int, default=7)
    chosen = options.parse_args()
    runs = [(version(), first_round()) for _ in range(chosen.times + 1)][1:]
    took = dict(zip(LIMITS, map(statistics.median, zip(*runs, strict=True)), strict=True))
    rows = [{"name": name, "value": round(s, 3), "unit": "s"} for name, s in took.items()]
    print(*(json.dumps(row) for row in rows), sep="\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    late = [
        f"{name} took {took[name]:.2f} s, more than {LIMITS[name]} s"
        for name in LIMITS
        if took[name] > LIMITS[name]
    ]
    if late:
        sys.exit("; ".join(late))


if __name__ == "__main__":
    main()
