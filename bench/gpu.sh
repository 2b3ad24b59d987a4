#!/usr/bin/env bash
# What is to be measured on a GPU. `bash bench/gpu.sh` measures sampling (bench/gpu.py), `bash bench/gpu.sh training` training steps
# (bench/training_gpu.py), `bash bench/gpu.sh all` both. Options go to the scripts. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
what=sampling
case "${1:-}" in sampling | training | all) what=$1; shift ;; esac
if [ "$what" != training ]; then "${PYTHON:-python3}" bench/gpu.py "$@"; fi
if [ "$what" != sampling ]; then "${PYTHON:-python3}" bench/training_gpu.py "$@"; fi
