#!/usr/bin/env bash
# The sentiment task over several seeds, and the table of docs/results.md.
#
#   runs/sentiment_seeds.sh [MODEL] [SEED …]      (default: stories260k 1 2 3)
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${1:-stories260k}
shift || true
SEEDS=${*:-1 2 3}
for SEED in $SEEDS; do
  [ -f "out/sentiment/$MODEL-seed$SEED/report/report.json" ] || runs/sentiment.sh "$MODEL" "$SEED" "out/sentiment/$MODEL-seed$SEED"
done
# shellcheck disable=SC2086
python runs/seed_table.py $(for SEED in $SEEDS; do echo "out/sentiment/$MODEL-seed$SEED/report/report.json"; done)
