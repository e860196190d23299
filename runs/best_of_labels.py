"""Demonstrations from labels: of each comparison the best response that ends as it should, if it is among the two best.

    python runs/best_of_labels.py out/cnndm/smollm2/labels/train.jsonl out/cnndm/smollm2/labels/best.jsonl

The start stage (`configs/cnndm/start.yaml`) trains on that file, and PPO may start from its policy, which has the labels in it;
the KL is then from there (the SFT policy as reference, as in InstructGPT, 2203.02155).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from lightning_rlhf.files import write_jsonl
from lightning_rlhf.records import read_comparisons


def text_of(response: Any) -> str:
    """A response, or the content of its last message."""
    return response if isinstance(response, str) else str(response[-1]["content"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", help="comparisons: ranks or ratings, or the best alone, which is then taken or nothing")
    parser.add_argument("output", type=Path)
    parser.add_argument("--end", default="\n", help="what a response must end with (default: a line end)")
    parser.add_argument("--rank", type=int, default=2, help="the worst rank that is taken")
    args = parser.parse_args()
    chosen: dict[str, dict[str, Any]] = {}
    for record in read_comparisons(args.labels):
        rated = record.ratings and [1 + sum(other > one for other in record.ratings) for one in record.ratings]
        ranks = record.ranks or rated or [1 if i == record.best else math.inf for i in range(len(record.responses))]
        ranked = sorted(zip(ranks, record.responses, strict=True), key=lambda r: r[0])
        ended = [text for rank, text in ranked if rank <= args.rank and text_of(text).endswith(args.end)]
        if ended:
            chosen[repr((record.prompt, ended[0]))] = {"prompt": record.prompt, "completion": ended[0]}
    if not chosen:
        raise SystemExit(f"{args.labels}: found no response of rank {args.rank} or better that ends with {args.end!r}")
    count = write_jsonl(args.output, list(chosen.values()))
    print(f"{args.output}: {count} demonstrations")
