"""A gigabyte of comparisons through `read_comparisons`: seconds, and memory above the process's start.

    python benchmarks/read_gigabyte.py [--gigabytes 1] [--output FILE.md]

The file is written first, into a temporary folder: pairs of about 2 kB with texts that differ. Wanted: within 150 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import head, save

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys, time
from lightning_rlhf.machine import peak_resident
from lightning_rlhf.records import read_comparisons
peak = lambda: peak_resident() / 2**20
start, began = peak(), time.perf_counter()
n = sum(1 for _ in read_comparisons(sys.argv[1]))
print(n, time.perf_counter() - began, start, peak() - start)
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--output", default=None, help="Markdown file of the table")
    args = parser.parse_args()
    lines = [
        head("Reading comparisons", 1, ("transformers",)),
        "| file | GB | records | seconds | MB a second | at the start, MB | above it, MB |\n|---|--:|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        file, size, number = Path(folder) / "pairs.jsonl", 0, 0
        with file.open("w", encoding="utf-8") as out:
            while size < args.gigabytes * 1e9:
                text = f"{number} walked to the river and saw nothing. "
                row = {"prompt": text * 16, "chosen": text * 14, "rejected": f"not {text}" * 14}
                size += out.write(json.dumps(row) + "\n")
                number += 1
        done = subprocess.run([sys.executable, "-c", CODE, str(file)], capture_output=True, text=True, check=True, cwd=ROOT)
    n, seconds, start, grown = map(float, done.stdout.split())
    assert n == number, f"read {n} of {number} records"
    rate = size / 1e6 / seconds
    lines.append(f"| JSON lines | {size / 1e9:.2f} | {n:,.0f} | {seconds:.0f} | {rate:.0f} | {start:.0f} | {grown:.0f} |")
    save("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
