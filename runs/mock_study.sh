#!/usr/bin/env bash
# The mock study (Ziegler et al. 2019, §3.1.1), where the true reward is known: RL on reward models of 250, 1,000 and 5,000
# labels against RL on the known reward itself and best-of-n; and the same with a weak KL penalty, for over-optimisation.
#
#   runs/mock_study.sh [MODEL] [SEED] [OUT]      (default: stories260k 1 out/mock/MODEL-seedSEED)
#
# Then, over one or more seeds: python runs/mock_study.py OUT [OUT …] --plot FILE.png
set -euo pipefail
MODEL=${1:-stories260k}
SEED=${2:-1}
OUT=${3:-out/mock/$MODEL-seed$SEED}
BASE=configs/sentiment
OVER=configs/sentiment/$MODEL
HARDWARE=configs/hardware/cpu.yaml
PAIRS='[{"prompt": "", "better": " what a wonderful, lovely day.", "worse": " what a terrible, awful mess."}]'
cd "$(dirname "$0")/.."
fit() { # STAGE FOLDER flags …
  local STAGE=$1 FOLDER=$2
  shift 2
  if [ ! -e "$FOLDER/$STAGE/run.json" ]; then
    lightning-rlhf fit -c "$BASE/$STAGE.yaml" -c "$OVER/$STAGE.yaml" -c $HARDWARE --run_dir "$FOLDER" --seed_everything "$SEED" "$@"
  fi
}
ppo() { # FOLDER flags …: standard, and with a weak penalty that stays
  local FOLDER=$1
  shift
  local HELD=(--data.val "$OUT/val.jsonl" --model.held_out_reward known:sentiment --trainer.val_check_interval 4)
  fit ppo "$FOLDER" "${HELD[@]}" "$@"
  local WEAK=(--model.output "$FOLDER/weak/ppo" --model.kl_target null --model.kl_coef 0.02 --trainer.logger.save_dir "$FOLDER/weak/logs")
  fit ppo "$FOLDER/weak" "${HELD[@]}" "$@" --run_dir "$FOLDER" "${WEAK[@]}"
}
set -x
[ -e "$OUT/prompts/run.json" ] ||
  lightning-rlhf prompts -c $BASE/prompts.yaml -c "$OVER/prompts.yaml" --run_dir "$OUT" --seed "$SEED"
[ -e "$OUT/labels/run.json" ] ||
  lightning-rlhf labels -c $BASE/labels.yaml -c "$OVER/labels.yaml" --run_dir "$OUT" --seed "$SEED"
head -n 256 "$OUT/prompts/test.jsonl" >"$OUT/val.jsonl"
for LABELS in 250 1000 5000; do
  RUN=$OUT/labels-$LABELS
  mkdir -p "$RUN/labels" "$RUN/prompts"
  cp "$OUT"/prompts/*.jsonl "$RUN/prompts"
  head -n "$LABELS" "$OUT/labels/train.jsonl" >"$RUN/labels/train.jsonl"
  cp "$OUT/labels/val.jsonl" "$RUN/labels"
  fit reward "$RUN"
  ppo "$RUN"
done
mkdir -p "$OUT/known/prompts"
cp "$OUT"/prompts/*.jsonl "$OUT/known/prompts"
ppo "$OUT/known" --model.reward known:sentiment --model.guard_comparisons null --model.guard_pairs "$PAIRS"
