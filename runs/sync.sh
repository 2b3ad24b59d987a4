#!/usr/bin/env bash
# From nothing to a lip-synced video, each step a command:  bash runs/sync.sh FACE AUDIO OUT [options of `latentsync sync`]
# MODEL chooses the model (1.6 by default: 5.5 GB to fetch once; 1.5 is four times as fast; or a folder).
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash runs/sync.sh FACE AUDIO OUT [options of latentsync sync]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
model=${MODEL:-1.6}
face=$1 audio=$2 out=$3
shift 3

make --directory "$here" --no-print-directory venv      # set up, where that is not done yet
latentsync=$here/.venv/bin/latentsync
"$latentsync" doctor || exit 1                          # ends here if something needed is broken
if [ ! -d "$model" ]; then
    "$latentsync" models download "$model"              # fetches what is missing, checks it; does nothing where all is here
fi
exec "$latentsync" sync --out "$out" --model "$model" "$@" -- "$face" "$audio"
