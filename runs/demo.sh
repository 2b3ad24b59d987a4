#!/usr/bin/env bash
# The demo model, from nothing to the files that ship:  bash runs/demo.sh OUT [FIRST_SEED LAST_SEED]
# OUT: a new or a begun folder (about 10 GB); the same command goes on where it stands. Clips are drawn for the seeds FIRST_SEED to LAST_SEED
# (3000-3399); HELD_OUT (2073-2092) are drawn too and never trained on. CORPUS: a folder of clips that are drawn already, used besides.
# LATENTSYNC_SYNTHHEADS: the packed face mesh (docs/corpus.md). JOBS processes draw and train (2). SIZE of the face crops in pixels (128).
# STEPS_VAE, STEPS_SPEECH, STEPS_TRACKER, STEPS_SYNCNET, STEPS_UNET: how long, where not as in the presets. SHIP: folder for the files (the package's own).
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: bash runs/demo.sh OUT [FIRST_SEED LAST_SEED]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd) first=${2:-3000} last=${3:-3399}
jobs=${JOBS:-2} size=${SIZE:-128} held=${HELD_OUT:-2073-2092}
make --directory "$here" --no-print-directory venv
bin=$here/.venv/bin
cd "$here"
export OMP_NUM_THREADS=1
train=("$bin/latentsync" train)
[ "$jobs" -gt 1 ] && train=("$bin/torchrun" --nproc-per-node "$jobs" -m latentsync train) # one process for each core: faster than threads

timed() { # NAME COMMAND...: run a stage and keep the time it took
    local name=$1 began=$SECONDS
    shift
    "$@"
    echo "$(date -u +%FT%TZ) $name $((SECONDS - began)) s" | tee -a "$out/times.txt"
}

timed draw "$bin/python" -m tools.synthheads "$out/corpus" --seeds "$first-$last" --jobs "$jobs"
timed draw-held-out "$bin/python" -m tools.synthheads "$out/held-out" --seeds "$held" --jobs "$jobs"
timed speak "$bin/python" -m tools.synthheads "$out/sounds" --sound-only --seeds 5000-6999 --jobs "$jobs"
timed crop "$bin/python" -m tools.crops "$out/corpus" "$out/crops" --size "$size" --jobs "$jobs"
timed crop-held-out "$bin/python" -m tools.crops "$out/held-out" "$out/crops-held-out" --size "$size" --jobs "$jobs"
[ -z "${CORPUS:-}" ] || timed crop-given "$bin/python" -m tools.crops "$CORPUS" "$out/crops" --size "$size" --jobs "$jobs"
"$bin/latentsync" prepare list "$out/crops" --out "$out/crops.txt" --overwrite
faces=(data.train="$out/crops.txt" data.validation="$out/crops-held-out" data.cache="$out/cache")

timed speech "${train[@]}" speech demo data.train="$out/sounds" data.validation="$out/held-out" data.cache="$out/cache" run.out="$out/speech" ${STEPS_SPEECH:+run.steps=$STEPS_SPEECH}
timed autoencoder "${train[@]}" autoencoder demo "${faces[@]}" run.out="$out/autoencoder" ${STEPS_VAE:+run.steps=$STEPS_VAE}
timed tracker "${train[@]}" tracker demo data.train="$out/corpus" data.validation="$out/held-out" data.cache="$out/cache" run.out="$out/tracker" ${STEPS_TRACKER:+run.steps=$STEPS_TRACKER}
timed syncnet "${train[@]}" syncnet demo "${faces[@]}" run.out="$out/syncnet" ${STEPS_SYNCNET:+run.steps=$STEPS_SYNCNET}
"$bin/python" -m tools.ship "$out/ship" vae="$out/autoencoder" whisper="$out/speech"
timed unet "${train[@]}" unet demo "${faces[@]}" vae="$out/ship/vae.safetensors" whisper="$out/ship/whisper.safetensors" run.out="$out/unet" ${STEPS_UNET:+run.steps=$STEPS_UNET}
"$bin/python" -m tools.ship "${SHIP:-src/latentsync/demo}" unet="$out/unet" vae="$out/autoencoder" whisper="$out/speech" tracker="$out/tracker" syncnet="$out/syncnet"
timed measure "$bin/python" -m bench.demo "$out/held-out" --seeds "$held"
