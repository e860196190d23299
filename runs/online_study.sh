#!/usr/bin/env bash
# Online collection against offline, on the same labels, episodes and queries: the sentiment task on stories260k.
#
#   runs/online_study.sh SEED [OUT]
#
# Offline is runs/sentiment.sh: 5,000 labels of the language model's responses, then PPO. Online has the same number of labels and
# episodes in five rounds, the later labels of the policy's own responses. One report has both, each against the other.
#
# SEED  of everything that is drawn at random
# OUT   folder of the run (default out/online/seedSEED); an offline run that is there is used
set -euo pipefail
SEED=$1
cd "$(dirname "$0")/.."
OUT=${2:-out/online/seed$SEED}
BASE=configs/sentiment
OVER=$BASE/stories260k
[ -d "$OUT/ppo" ] || runs/sentiment.sh stories260k "$SEED" "$OUT"
set -x
lightning-rlhf online -c $BASE/online.yaml -c $OVER/online.yaml --run_dir "$OUT" --seed "$SEED" --total_episodes 11776
python -m eval report --config $BASE/eval.yaml --config $OVER/eval.yaml --run_dir "$OUT" --seed "$SEED" --output "$OUT/report-online" \
  --policies "{zero-shot: stories260k, supervised: $OUT/sft, offline: $OUT/ppo, rlhf: $OUT/online/ppo}" \
  --learned_reward "$OUT/online/reward" --comparisons null --logs null
