#!/usr/bin/env bash
# TL;DR's baselines: the human summaries, the outputs of a 1.3B RLHF policy, lead-1 and lead-3, a random sentence, and zero-shot,
# few-shot and supervised smollm2, on real posts; in one report. About 35 minutes on one core.
#
#   runs/tldr_baselines.sh DATA_DIR OUT [POSTS] [OPTION …]
#
# DATA_DIR  holds tldr/posts.jsonl.gz: `query`, `post`, `reference`, `ppo_1.3b`
# OUT       where everything goes; the same command goes on with what is there
# POSTS     so many posts (default 200); the demonstrations of few-shot and the supervised policy come from the others
# OPTION    any option of `python -m eval`, such as --reference smollm2 (KL and perplexity; half an hour more)
set -euo pipefail
DATA=$1 OUT=$2 POSTS=${3:-200}
shift $(($# < 3 ? $# : 3))
DATA=$(realpath "$DATA") && mkdir -p "$OUT" && OUT=$(realpath "$OUT")
cd "$(dirname "$0")/.." && OUT=$(realpath --relative-to=. "$OUT")
python - "$DATA/tldr/posts.jsonl.gz" "$OUT" "$POSTS" <<'PYTHON'
import sys
from lightning_rlhf.files import read_jsonl, write_jsonl

source, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
posts = [{"id": f"tldr-{line:05d}", **r} for _, line, r in read_jsonl(source)]
for r in posts:
    r["prompt"] = r.pop("query").removesuffix("\n\nTL;DR:")  # the task's own suffix
write_jsonl(f"{out}/prompts.jsonl", posts[:count])
shown = [{"prompt": r["prompt"], "completion": r["reference"]} for r in posts[count:]]
write_jsonl(f"{out}/demonstrations.jsonl", [r for r in shown if len(r["prompt"]) <= 800])
ended = [{**r, "completion": f" {r['completion'].strip()}\n"} for r in shown if len(r["prompt"]) <= 1200]
write_jsonl(f"{out}/demonstrations.train.jsonl", ended)
PYTHON
if [ ! -d "$OUT/sft" ]; then
  lightning-rlhf fit -c configs/tldr/sft.yaml -c configs/tldr/smollm2/sft.yaml -c configs/hardware/cpu.yaml --run_dir "$OUT" \
    --task.query_length 400 --data.train "$OUT/demonstrations.train.jsonl" --data.val null
fi
CONFIG=(--config configs/tldr/eval.yaml --config runs/tldr_baselines.yaml --run_dir "$OUT" --output "$OUT/report")
python -m eval report "${CONFIG[@]}" "$@"
