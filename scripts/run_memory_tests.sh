#!/bin/sh
# Runs a table of configurations, one run each; the exit code is that of the launcher.
#
#   scripts/run_memory_tests.sh                                  # configs/matrix_1gpu.yaml
#   scripts/run_memory_tests.sh configs/cpu2.yaml --set generation.sample_steps=2
#
# PYTHON picks the interpreter; without it .venv/bin/python of `make env` is taken, or else python3.
set -eu
cd "$(dirname "$0")/.."

case "${1:-}" in
    "" | -*) config=configs/matrix_1gpu.yaml ;;
    *) config=$1; shift ;;
esac

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi

exec "$PYTHON" -m ray_memprof.launch "$config" "$@"
