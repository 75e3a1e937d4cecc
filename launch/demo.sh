#!/usr/bin/env bash
# From raw text to distilled students, with a report on the first after half of the time and on all
# at the end: makes a virtual environment, installs the library, and runs experiments/configs/demo.py.
# Repeat it to continue a run that was stopped.
#
#   bash launch/demo.sh [options of experiments.run]
#
# WORKDIR=DIR or --workdir=DIR changes where the run goes (default: runs/demo in the checkout); see
# launch/environment.sh for PYTHON, VENV and CONSTRAINTS.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir=$(absolute "${WORKDIR:-$root/runs/demo}")
for option; do
  case $option in
    --workdir=*) workdir=$(absolute "${option#*=}") ;;
    --workdir) job=demo fail "write --workdir=DIR, with an equals sign." ;;
  esac
done
prepare_environment demo
# What it saves, and for which processors: docs/measurements/speed.md.
narrow="--config.model.compute_dtype=bf16_bf16_f32 --config.judge.model.compute_dtype=bf16_bf16_f32"
if [ ! -e "$workdir" ] && [[ "$*" != *compute_dtype* ]] && grep -qsw amx_bf16 /proc/cpuinfo; then
  say "this processor multiplies bfloat16 numbers: the run takes a fifth less time with $narrow"
fi
say "running the demo in $workdir (Ctrl-C stops it; the same command continues)"
say "for your own commands, now or afterwards: cd '$root' && source '$venv/bin/activate'"
exec "$PYTHON_IN_VENV" -m experiments.run --config=experiments/configs/demo.py "$@" --workdir="$workdir"
