#!/usr/bin/env bash
# A model on a folder of talking videos, by every protocol, into one report, each step a command:  bash runs/evaluate.sh VIDEOS OUT [options of `evaluate pairs`]
# MODEL chooses the model (1.6 by default; demo needs no download). Stopped anywhere, the same command goes on.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash runs/evaluate.sh VIDEOS OUT [options of latentsync evaluate pairs]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
model=${MODEL:-1.6}
videos=$1 out=$2
shift 2

make --directory "$here" --no-print-directory venv      # set up, where that is not done yet
latentsync=$here/.venv/bin/latentsync
if [ "$model" != demo ]; then
    if [ ! -d "$model" ]; then
        "$latentsync" models download "$model"
    fi
    "$latentsync" models download judges                # SyncNet v2 and HyperIQA
    "$latentsync" models download evaluation            # what FID, FVD, LPIPS and the detector of speech look through
fi
for protocol in reconstruction cross silence long; do
    "$latentsync" evaluate pairs "$videos" --out "$out/$protocol" --protocol "$protocol" --model "$model" --name "$model, $protocol" --no-report "$@"
done
"$latentsync" evaluate report "$out"/reconstruction "$out"/cross "$out"/silence "$out"/long --out "$out/report.html" --overwrite
