"""Stubs of the programs that rendered scripts call, and a way to run the scripts with them.

`python` takes its exit statuses from a list, one each time it is run, and writes down its arguments.
"""

import dataclasses
import os
import pathlib
import subprocess

_STUBS = {
    "python": """
printf '%s\\n' "$@" >"$STUB/argv"
echo run >>"$STUB/runs"
code=$(sed -n "$(($(wc -l <"$STUB/runs")))p" "$STUB/codes")
exit "${code:-99}"
""",
    "sudo": 'exec "$@"\n',
    # A queue with one resource, whose one host is this machine.
    "gcloud": """
echo "$*" | head -n1 >>"$STUB/gcloud"
if [ -s "$STUB/offline" ]; then # a line for each call that fails
  sed -i 1d "$STUB/offline"
  echo "ERROR: gcloud crashed (ConnectionError): Failed to establish a new connection" >&2
  exit 1
fi
if [ "$4" = "$(head -n1 "$STUB/refusals" 2>/dev/null)" ]; then # a line for each call that is refused
  sed -i 1d "$STUB/refusals"
  echo "ERROR: (gcloud.compute.tpus.queued-resources.$4) UNAVAILABLE: 503" >&2
  exit 1
fi
case $4 in
  describe)
    if [ ! -e "$STUB/state" ]; then
      echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found" >&2
      exit 1
    fi
    cat "$STUB/state"
    if grep -q SUSPENDING "$STUB/state"; then echo SUSPENDED >"$STUB/state"; fi
    ;;
  create) echo "${CREATED:-ACTIVE}" >"$STUB/state" ;;
  delete) rm -f "$STUB/state" ;;
  ssh)
    for argument in "$@"; do
      case $argument in
        --command=action=install*)
          if [ -e "$STUB/install" ]; then # what happens meanwhile, once
            mv "$STUB/install" "$STUB/happened"
            . "$STUB/happened"
          fi
          ;;
        --command=*)
          if [ -e "$STUB/preempt" ]; then
            mv "$STUB/preempt" "$STUB/preempted"
            echo SUSPENDED >"$STUB/state"
            exit 255
          fi
          if [ -e "$STUB/cut" ]; then
            mv "$STUB/cut" "$STUB/was-cut"
            cp "$STUB/was-cut" "$STUB/offline"
            exit 255
          fi
          if [ -s "$STUB/cuts" ]; then # a line for each connection that is cut, with the queue in reach
            sed -i 1d "$STUB/cuts"
            exit 255
          fi
          bash -c "${argument#--command=}"
          ;;
      esac
    done
    ;;
esac
""",
    "docker": """
command=$1
shift
case $command in
  run | wait)
    if [ -e "$STUB/no-docker" ]; then
      echo "docker: Error response from daemon: No such container" >&2
      exit 1
    fi
    ;;
esac
case $command in
  run)
    while [ "${1#--}" != "$1" ]; do shift; done
    shift
    "$@"
    echo "$?" >"$STUB/exit"
    ;;
  wait)
    cat "$STUB/exit"
    rm -f "$STUB/running"
    ;;
  ps) if [ -e "$STUB/running" ]; then echo 0123; fi ;;
esac
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
""",
    "scontrol": 'echo "$*" >>"$STUB/scontrol"\n',
    "xpk": """
for argument in "$@"; do
  case $argument in # Kubernetes reads `$$` as `$`
    --command=*) command=${argument#--command=} && bash -c "${command//'$$'/$}" ;;
  esac
done
""",
}


@dataclasses.dataclass(frozen=True)
class Stubs:
    """A folder with the stubs and what they wrote down."""

    root: pathlib.Path

    @property
    def python(self) -> str:
        return str(self.root / "bin" / "python")

    @property
    def runs(self) -> int:
        """How often `python` was run."""
        return len(self.lines("runs"))

    def lines(self, name: str) -> list[str]:
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []

    def run(self, script: pathlib.Path | str, *arguments: str, codes: list[int], **variables: str):
        """Runs a script with `codes` as the exit statuses of `python`."""
        (self.root / "codes").write_text("".join(f"{code}\n" for code in codes))
        return subprocess.run(
            ["bash", str(script), *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.root / "cwd",
            env={
                "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
                "HOME": str(self.root / "home"),
                "STUB": str(self.root),
                "POD_PAUSE": "0",
                **variables,
            },
            stdin=subprocess.DEVNULL,
            timeout=60,
        )


def make_stubs(root: pathlib.Path) -> Stubs:
    """Writes the stubs below `root`."""
    for name in ("bin", "cwd", "home/sdtt-venv/bin"):
        (root / name).mkdir(parents=True)
    (root / "home/sdtt-venv/bin/activate").touch()
    for name, body in _STUBS.items():
        path = root / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}")
        path.chmod(0o755)
    return Stubs(root)
