#!/usr/bin/env bash
# The sentiment task of Ziegler et al. 2019, whole, on a CPU: prompts, labels, supervised policy, reward model, PPO, report.
#
#   runs/sentiment.sh [MODEL] [SEED] [RUN_DIR] [FIRST_RUN]
#
# MODEL    stories260k (embedded; minutes) or smollm2 (135M parameters; make .venv/.smollm2 first)
# SEED     of everything that is drawn at random (default 1)
# RUN_DIR  where everything goes (default: a new folder under out/)
# FIRST_RUN  a run whose prompts, labels, supervised policy and reward model are taken; only PPO and the report are run
#
# SHORT=1 (make demo): smollm2 within the hour, with 1,600 queries to label in place of 3,200, two comparisons each, and 300
# held-out queries in place of 500. stories260k is short as it is.
#
# Each command can be run alone, and any option changed by a flag or a further -c FILE.
set -euo pipefail
MODEL=${1:-stories260k}
SEED=${2:-1}
RUN=${3:-out/sentiment/$MODEL-seed$SEED-$(date +%Y%m%d-%H%M%S)}
BASE=configs/sentiment
OVER=configs/sentiment/$MODEL
HARDWARE=configs/hardware/cpu.yaml
if [ "$MODEL" != stories260k ] && grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
  HARDWARE=configs/hardware/cpu_bf16.yaml # about 4 times faster than float32 on such CPUs
fi
PROMPTS=
if [ -n "${SHORT:-}" ] && [ "$MODEL" = smollm2 ]; then
  PROMPTS="--train 1600 --test 300"
fi
cd "$(dirname "$0")/.."
set -x
if [ -n "${4:-}" ]; then
  mkdir -p "$RUN" && cp -r "$4"/{prompts,labels,sft,reward} "$RUN"
else
  lightning-rlhf prompts -c $BASE/prompts.yaml -c $OVER/prompts.yaml --run_dir "$RUN" --seed "$SEED" $PROMPTS
  lightning-rlhf labels -c $BASE/labels.yaml -c $OVER/labels.yaml --run_dir "$RUN" --seed "$SEED"
  lightning-rlhf fit -c $BASE/sft.yaml -c $OVER/sft.yaml -c $HARDWARE --run_dir "$RUN" --seed_everything "$SEED"
  lightning-rlhf fit -c $BASE/reward.yaml -c $OVER/reward.yaml -c $HARDWARE --run_dir "$RUN" --seed_everything "$SEED"
fi
lightning-rlhf fit -c $BASE/ppo.yaml -c $OVER/ppo.yaml -c $HARDWARE --run_dir "$RUN" --seed_everything "$SEED"
python -m eval report --config $BASE/eval.yaml --config $OVER/eval.yaml --run_dir "$RUN" --seed "$SEED"
set +x
echo
echo "report: $RUN/report/report.html"
echo "figures: $RUN/report/report.json"
