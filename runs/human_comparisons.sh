#!/usr/bin/env bash
# The reward model on real human comparisons, beside what length and ROUGE alone reach.
#
#   runs/human_comparisons.sh DATA [OUT] [LM]
#
# DATA  a folder with hh_harmless/comparisons.jsonl.gz and summeval/ratings.jsonl.gz; what is not there is skipped
# OUT   where everything goes (default: out/human/LM)
# LM    the language model (default: smollm2; make .venv/.smollm2 first)
#
# Wants scikit-learn (the extra dev) for the baselines.
set -euo pipefail
DATA=$(realpath "${1:?which folder holds the data?}")
LM=${3:-smollm2}
OUT=$(realpath -m "${2:-out/human/$LM}")
cd "$(dirname "$0")/.."
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD
HARDWARE=configs/hardware/cpu.yaml
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
  HARDWARE=configs/hardware/cpu_bf16.yaml # about 4 times faster than float32 on such CPUs
fi
for SET in hh_harmless:comparisons:96:64 summeval:ratings:320:112; do
  IFS=: read -r NAME FILE QUERY RESPONSE <<<"$SET"
  if [ ! -f "$DATA/$NAME/$FILE.jsonl.gz" ]; then
    echo "$NAME: skipped, $DATA/$NAME/$FILE.jsonl.gz is not there"
    continue
  fi
  python runs/human_comparisons.py prepare $NAME "$DATA" "$OUT" "$LM" $QUERY $RESPONSE
  lightning-rlhf fit -c configs/human/$NAME.yaml -c $HARDWARE --run_dir "$OUT/$NAME" --lm "$LM"
  python runs/human_comparisons.py table "$OUT"
done
