#!/usr/bin/env bash
# Which measure agrees with SummEval's experts: Kendall's τ with intervals, length as the control. A minute or two on one core.
#
#   runs/summeval.sh DATA [REWARD_DIRECTORY …]      DATA/summeval/ratings.jsonl.gz is read; reward models agree too, or not
set -euo pipefail
FILE=${1:?usage: runs/summeval.sh DATA_FOLDER}/summeval/ratings.jsonl.gz
REWARDS=("${@:2}")
if [ ! -f "$FILE" ]; then
  echo "$FILE: not there; skipped" >&2
  exit 0
fi
cd "$(dirname "$0")/.."
python runs/summeval_agreement.py "$(cd "$OLDPWD" && realpath "$FILE")" 1000 ${REWARDS[@]+"${REWARDS[@]}"}
