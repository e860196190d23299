"""Demonstrations from ranked labels: of each comparison the best response that ends as it should, if it is among the two best.

    python runs/best_of_labels.py out/cnndm/smollm2/labels/train.jsonl out/cnndm/smollm2/labels/best.jsonl

Then `lightning-rlhf fit` of the sft stage with `--data.train` that file, and PPO with `--model.policy` its policy: a start that
has the labels in it, and whose KL is from itself (the SFT policy as reference, as in InstructGPT, 2203.02155).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_rlhf.files import write_jsonl
from lightning_rlhf.records import read_comparisons

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", help="ranked comparisons")
    parser.add_argument("output", type=Path)
    parser.add_argument("--end", default="\n", help="what a response must end with (default: a line end)")
    parser.add_argument("--rank", type=int, default=2, help="the worst rank that is taken")
    args = parser.parse_args()
    chosen: dict[tuple[str, str], None] = {}
    for record in read_comparisons(args.labels):
        ranked = sorted(zip(record.ranks or [], record.responses, strict=False), key=lambda r: r[0])
        ended = [text for rank, text in ranked if rank <= args.rank and text.endswith(args.end)]
        if ended:
            chosen[record.prompt, ended[0]] = None
    count = write_jsonl(args.output, [{"prompt": prompt, "completion": text} for prompt, text in chosen])
    print(f"{args.output}: {count} demonstrations")
