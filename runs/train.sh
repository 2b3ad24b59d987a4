#!/usr/bin/env bash
# From clips to a trained model, each step a command:  bash runs/train.sh CLIPS OUT [SD15_UNET]
# CLIPS: a folder of aligned clips, or a list. OUT: a new or a begun folder; the same command goes on where it stands.
# SD15_UNET: Stable Diffusion 1.5's U-Net to begin with (a file, or a folder in diffusers' form); without it the U-Net begins with random weights.
# RESOLUTION 256 or 512; GPUS processes; BATCH_SYNC, BATCH_1, BATCH_2 samples for each of them; STEPS_SYNC, STEPS_1, STEPS_2 how long (by default: until stopped with Ctrl-C, which saves; run again with a number to go on).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash runs/train.sh CLIPS OUT [SD15_UNET]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
clips=$1 out=$2 start=${3:-}
suffix=
[ "${RESOLUTION:-256}" = 512 ] && suffix=_512

make --directory "$here" --no-print-directory venv
bin=$here/.venv/bin
launch=("$bin/latentsync")
[ "${GPUS:-1}" -gt 1 ] && launch=("$bin/torchrun" --nproc-per-node "$GPUS" -m latentsync)

mkdir -p "$out"
"$bin/latentsync" models download training              # VGG16, LPIPS and VideoMAE, which judge in stage 2
"$bin/latentsync" models download shared                # autoencoder and Whisper
[ -f "$out/clips.txt" ] || "$bin/latentsync" train check "$clips" --write "$out/clips.txt" || [ -s "$out/clips.txt" ]

"${launch[@]}" train syncnet syncnet_16_pixel_attn data.train="$out/clips.txt" run.out="$out/syncnet" ${BATCH_SYNC:+run.batch=$BATCH_SYNC} ${STEPS_SYNC:+run.steps=$STEPS_SYNC}
"${launch[@]}" train unet "stage1$suffix" data.train="$out/clips.txt" run.out="$out/stage1" ${start:+start="$start"} ${BATCH_1:+run.batch=$BATCH_1} ${STEPS_1:+run.steps=$STEPS_1}
"${launch[@]}" train unet "stage2$suffix" data.train="$out/clips.txt" run.out="$out/stage2" start="$out/stage1" syncnet="$out/syncnet" ${BATCH_2:+run.batch=$BATCH_2} ${STEPS_2:+run.steps=$STEPS_2}
"$bin/latentsync" train export "$out/stage2" "$out/latentsync_unet.pt"
