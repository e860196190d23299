#!/usr/bin/env bash
# CNN/DM in one report: SummEval's 16 systems on 100 articles, with two judges: the experts' ratings (the sum of four axes) and ROUGE
# against eleven references. No model is needed; about three minutes on one core.
#
#   runs/cnndm_summeval.sh DATA_DIR OUT [OPTION …]
#
# DATA_DIR  holds summeval/ratings.jsonl.gz: `id`, `article`, `references`, `systems`
# OUT       where everything goes
# OPTION    any option of `python -m eval report`, such as --reference smollm2
set -euo pipefail
DATA=$1 OUT=$2
shift 2
DATA=$(realpath "$DATA") && mkdir -p "$OUT" && OUT=$(realpath "$OUT")
cd "$(dirname "$0")/.." && OUT=$(realpath --relative-to=. "$OUT")
python - "$DATA/summeval/ratings.jsonl.gz" "$OUT" <<'PYTHON'
import sys
from lightning_rlhf.files import read_jsonl, write_jsonl

NAMES = {  # the systems of SummEval (arXiv 2007.12626), by its numbers
    "M0": "lead-3", "M1": "NeuSum", "M2": "BanditSum", "M5": "RNES", "M8": "pointer-generator", "M9": "fast-abs-rl",
    "M10": "bottom-up", "M11": "improve-abs", "M12": "unified-ext-abs", "M13": "ROUGESal", "M14": "multi-task",
    "M15": "closed-book", "M17": "T5", "M20": "GPT-2", "M22": "BART", "M23": "Pegasus",
}
source, out = sys.argv[1:]
rows = [r for _, _, r in read_jsonl(source)]
write_jsonl(f"{out}/prompts.jsonl", [dict(id=r["id"], prompt=r["article"], reference=r["references"]) for r in rows])
samples = [
    dict(id=r["id"], policy=NAMES.get(name, name), prompt=r["article"], response=system["summary"], task="cnndm",
         scores={**system["ratings"], "experts": sum(system["ratings"].values())})
    for r in rows for name, system in r["systems"].items()
]
place = {"lead-3": 0, "GPT-2": 2}  # the report's baseline comes first, what it is about last
samples.sort(key=lambda s: place.get(s["policy"], 1))
write_jsonl(f"{out}/samples/systems.jsonl", samples)
PYTHON
python -m eval report --config configs/cnndm/eval.yaml --config runs/cnndm_summeval.yaml --run_dir "$OUT" "$@"
