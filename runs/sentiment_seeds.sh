#!/usr/bin/env bash
# The sentiment task over several seeds, and the table of docs/results.md.
#
#   runs/sentiment_seeds.sh [MODEL] [SEED …]      (default: stories260k 1 2 3)
#
# Everything is drawn again for each seed; with SHARED=1 the first seed's prompts, labels, supervised policy and reward model
# serve all, and PPO and the evaluation alone differ (smollm2: they take an hour on two cores).
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${1:-stories260k}
shift || true
SEEDS=${*:-1 2 3}
FIRST=
for SEED in $SEEDS; do
  RUN=out/sentiment/$MODEL-seed$SEED
  [ -f "$RUN/report/report.json" ] || runs/sentiment.sh "$MODEL" "$SEED" "$RUN" "$FIRST"
  [ -z "${SHARED:-}" ] || FIRST=${FIRST:-$RUN}
done
# shellcheck disable=SC2086
python runs/seed_table.py $(for SEED in $SEEDS; do echo "out/sentiment/$MODEL-seed$SEED/report/report.json"; done)
