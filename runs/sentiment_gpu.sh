#!/usr/bin/env bash
# The sentiment task on one GPU at bf16-mixed: the same commands as runs/sentiment.sh with configs/hardware/gpu.yaml.
#
#   runs/sentiment_gpu.sh [MODEL] [SEED] [RUN_DIR]
#
# MODEL    stories260k, smollm2, or gpt2 (the paper's values on gpt2, from the Hub; hours)
set -euo pipefail
MODEL=${1:-stories260k}
SEED=${2:-1}
RUN=${3:-out/sentiment/$MODEL-gpu-seed$SEED-$(date +%Y%m%d-%H%M%S)}
BASE=configs/sentiment
HARDWARE=configs/hardware/gpu.yaml
cd "$(dirname "$0")/.."
over() { [ "$MODEL" = gpt2 ] || echo "-c configs/sentiment/$MODEL/$1.yaml"; }
set -x
lightning-rlhf prompts -c $BASE/prompts.yaml $(over prompts) --run_dir "$RUN" --seed "$SEED"
lightning-rlhf labels -c $BASE/labels.yaml $(over labels) --run_dir "$RUN" --seed "$SEED"
lightning-rlhf fit -c $BASE/sft.yaml $(over sft) -c $HARDWARE --run_dir "$RUN" --seed_everything "$SEED"
lightning-rlhf fit -c $BASE/reward.yaml $(over reward) -c $HARDWARE --run_dir "$RUN" --seed_everything "$SEED"
lightning-rlhf fit -c $BASE/ppo.yaml $(over ppo) -c $HARDWARE --run_dir "$RUN" --seed_everything "$SEED" \
  --model.compile_blocks true --model.compile_sampler true
python -m eval report -c $BASE/eval.yaml $(over eval) --run_dir "$RUN" --seed "$SEED"
set +x
echo "report: $RUN/report/report.html"
