# shellcheck shell=bash
# Makes the virtual environment that launch/demo.sh and launch/test.sh run in. Sourced by them:
#
#   prepare_environment NAME [EXTRA]
#
# sets `root` (the checkout, which becomes the current directory), `venv` and PYTHON_IN_VENV.
#
# It may be repeated (a finished environment costs well under a second) and stopped anywhere:
# an environment that was not finished is made anew, since pip can leave a package half unpacked
# and yet call it installed.
#
# Read from the environment:
#   PYTHON       the Python to make the environment from       (default: python3 in PATH)
#   VENV         where it goes                                 (default: .venv in the checkout)
#   CONSTRAINTS  a file of exact versions, or `none` for the
#                newest versions that setup.cfg allows         (default: constraints.txt)
#   INSTALLER    uv or pip; where uv fails, pip follows        (default: uv)

# With CDPATH set, `cd` may go elsewhere, and prints where it went.
root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '[%s] %s\n' "$job" "$*"; }
fail() {
  printf '[%s] error: %s\n' "$job" "$*" >&2
  exit 1
}

absolute() { # a path as the caller's directory sees it, a bucket's as it is, and a quoted ~ as the home
  case $1 in
    \~ | \~/*) printf '%s%s\n' "${HOME:?is not set}" "${1#\~}" ;;
    /* | gs://*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$PWD" "$1" ;;
  esac
}

find_python() {
  python=${PYTHON:-python3}
  case $python in */*) python=$(absolute "$python") ;; esac
  command -v "$python" >/dev/null 2>&1 ||
    fail "no '$python' was found. Install Python 3.11 or newer, or set PYTHON=/path/to/python3."
  local facts
  facts=$("$python" -c 'import sys; v = sys.version_info
print(int(v >= (3, 11)), "%d.%d.%d" % v[:3], sys.base_prefix)' 2>/dev/null) ||
    fail "'$python' does not run: $("$python" -c '' 2>&1 || true)"
  facts=${facts##*$'\n'} # a wrapper may say something first
  local new_enough
  read -r new_enough python_version python_prefix <<<"$facts"
  if [ "$new_enough" != 1 ]; then
    local other hint=''
    for other in python3.14 python3.13 python3.12 python3.11; do
      if "$other" -c '' >/dev/null 2>&1; then
        hint=" This machine has $other: PYTHON=$other bash launch/$job.sh"
        break
      fi
    done
    fail "'$python' is Python $python_version; 3.11 or newer is needed.$hint"
  fi
}

make_venv() {
  # Everything goes but the lock that this process holds.
  find "$venv" -mindepth 1 -maxdepth 1 ! -name .preparing -exec rm -rf {} +
  touch "$venv/.unfinished"
  if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    "$python" -m venv "$venv"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet "$venv"
  elif "$python" -c 'import pip, venv' >/dev/null 2>&1; then
    say "this Python has no ensurepip; its own pip fills the environment instead"
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --python "$venv/bin/python" install --quiet --no-input pip
  else
    fail "'$python' cannot make virtual environments: it has neither ensurepip nor pip." \
      "On Debian or Ubuntu: apt-get install python3-venv"
  fi
}

# Installs with uv, which takes 20 s where pip takes 90, most of them to collect some 200 pins. It reads none of
# pip's configuration; of that only another index matters, for all packages are on the public one.
install_by_uv() { # ARGUMENT…
  local index
  "$venv/bin/python" -m pip install --no-input --quiet --retries 1 "${constrained[@]}" uv || return
  index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
  "$venv/bin/uv" pip install --python "$venv/bin/python" --no-progress --system-certs \
    ${index:+--default-index "$index"} "${constrained[@]}" "$@"
}

install_packages() { # EXTRA
  local log=$venv/install.log target=$root constrained=()
  [ -z "$1" ] || target="${root}[$1]"
  [ "$constraints" = none ] || constrained=(--constraint "$constraints")
  if [ "$installer" = uv ]; then
    if install_by_uv --editable "$target" >"$log" 2>&1; then return; fi
    say "uv could not install the packages; trying pip"
  fi
  # Compiling every module of every package takes as long as the rest; Python compiles those that
  # are imported when they are.
  if ! "$venv/bin/python" -m pip install --no-input --progress-bar off --no-compile \
    "${constrained[@]}" --editable "$target" >>"$log" 2>&1; then
    tail -n 25 "$log" >&2
    fail "pip could not install the packages (its output: $log). Repeating the command tries again."
  fi
}

prepare_environment() { # NAME [EXTRA]
  job=$1
  local extra=${2:-}
  venv=$(absolute "${VENV:-$root/.venv}")
  constraints=${CONSTRAINTS:-$root/constraints.txt}
  if [ "$constraints" != none ]; then
    constraints=$(absolute "$constraints")
    [ -f "$constraints" ] || fail "CONSTRAINTS: there is no file $constraints."
  fi
  installer=${INSTALLER:-uv}
  case $installer in
    uv | pip) ;;
    *) fail "INSTALLER=$installer is unknown; choose one of uv, pip." ;;
  esac
  # Modules and options meant for another Python must not reach into this environment.
  unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX
  # Many containers set this. Every program would then compile some thousand modules anew, which pip was told
  # not to: 4.7 s of CPU time instead of 1.5 to import JAX, Flax and Optax.
  unset PYTHONDONTWRITEBYTECODE
  find_python
  cd "$root" || exit 1
  [ "$python_prefix" != "$venv" ] || fail "PYTHON points into VENV ($venv); choose another."

  if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ ! -e "$venv/.preparing" ] &&
    [ -n "$(ls -A "$venv")" ]; then
    fail "VENV=$venv exists and is not a virtual environment; choose another place."
  fi
  mkdir -p "$venv"
  # Not `.lock`, which is uv's: it would wait for this process, which waits for it.
  exec 9>"$venv/.preparing"
  if command -v flock >/dev/null 2>&1 && ! flock --nonblock 9; then
    say "waiting for another process that is preparing $venv"
    flock 9
  fi

  # What the environment is made of; if that changes, the packages are installed again.
  local key stamp="$venv/.installed${extra:+-$extra}" started=$SECONDS
  key="$python_version $python_prefix $(
    { cat setup.cfg pyproject.toml; [ "$constraints" = none ] || cat "$constraints"; } | cksum
  ) $root"
  if [ ! -e "$venv/.unfinished" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] &&
    "$venv/bin/python" -c 'import sdtt_jax' 2>/dev/null; then
    say "environment $venv is ready (Python $python_version)"
  else
    if [ -e "$venv/.unfinished" ]; then
      say "an earlier installation in $venv did not finish: making it anew"
      make_venv
    elif [ "$(cat "$venv/.python" 2>/dev/null)" != "$python_version $python_prefix $venv" ] ||
      ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
      say "making a virtual environment in $venv (Python $python_version)"
      make_venv
    fi
    say "installing packages: half a minute or so the first time (log: $venv/install.log)"
    touch "$venv/.unfinished"
    install_packages "$extra"
    printf '%s\n' "$python_version $python_prefix $venv" >"$venv/.python"
    printf '%s\n' "$key" >"$venv/.installed"
    printf '%s\n' "$key" >"$stamp"
    rm "$venv/.unfinished"
    say "installed in $((SECONDS - started)) s"
  fi
  exec 9>&-
  # shellcheck disable=SC2034  # for the sourcing script
  PYTHON_IN_VENV=$venv/bin/python
}
