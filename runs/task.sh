#!/usr/bin/env bash
# Any of the four tasks, whole: prompts, labels, supervised policy, reward model, PPO, report.
#
#   runs/task.sh TASK [MODEL] [SEED] [RUN_DIR] [DATA] [HARDWARE]
#
# TASK      sentiment, descriptiveness, tldr, cnndm
# MODEL     a folder of configs/TASK (smollm2, stories260k; of tldr also 2020), or gpt2: the paper's values, no overlay (default smollm2)
# SEED      of everything that is drawn at random (default 1)
# RUN_DIR   where everything goes (default: a new folder under out/)
# DATA      texts for the queries (default: what the config says). tldr and cnndm have none in the project: a file, a folder, a
#           glob or a Hub id of posts or articles, as in docs/method.md
# HARDWARE  a file of configs/hardware without its suffix (default: cpu_bf16 where the CPU is fast at it, else cpu)
set -euo pipefail
TASK=${1:?usage: runs/task.sh TASK [MODEL] [SEED] [RUN_DIR] [DATA] [HARDWARE]}
MODEL=${2:-smollm2}
SEED=${3:-1}
RUN=${4:-out/$TASK/$MODEL-seed$SEED-$(date +%Y%m%d-%H%M%S)}
DATA=${5:-}
if [ "$MODEL" != stories260k ] && grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then FAST=cpu_bf16; else FAST=cpu; fi
HARDWARE=configs/hardware/${6:-$FAST}.yaml
[ -z "$DATA" ] || [ ! -e "$DATA" ] || DATA=$(realpath "$DATA")
cd "$(dirname "$0")/.."
over() { [ "$MODEL" = gpt2 ] || echo "-c configs/$TASK/$MODEL/$1.yaml"; }
set -x
# shellcheck disable=SC2046
lightning-rlhf prompts -c "configs/$TASK/prompts.yaml" $(over prompts) --run_dir "$RUN" --seed "$SEED" ${DATA:+--source "$DATA"}
# shellcheck disable=SC2046
labels() { lightning-rlhf labels -c "configs/$TASK/labels.yaml" $(over labels) --run_dir "$RUN" --seed "$SEED"; }
[ "$MODEL" = 2020 ] || labels
for STAGE in sft start reward ppo; do
  if [ "$STAGE" = start ]; then # where PPO starts from what the labels like best
    grep -qs 'policy: ${run_dir}/start' "configs/$TASK/$MODEL/ppo.yaml" || continue
    python runs/best_of_labels.py "$RUN/labels/train.jsonl" "$RUN/labels/best.jsonl"
    STARTED=$RUN/start
  fi
  # shellcheck disable=SC2046
  lightning-rlhf fit -c "configs/$TASK/$STAGE.yaml" $(over $STAGE) -c "$HARDWARE" --run_dir "$RUN" --seed_everything "$SEED"
  [ "$MODEL/$STAGE" != 2020/sft ] || labels # of the supervised policy's summaries
done
# shellcheck disable=SC2046
python -m eval report -c "configs/$TASK/eval.yaml" $(over eval) --run_dir "$RUN" --seed "$SEED" ${STARTED:+--policies.start "$STARTED"}
set +x
echo
echo "report: $RUN/report/report.html"
echo "figures: $RUN/report/report.json"
