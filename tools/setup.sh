#!/usr/bin/env bash
# Make a virtual environment with SAT and its tools. Debian packages are installed only where
# something is missing; as root directly, else with sudo.
set -euo pipefail
python=$1 venv=$2

missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
command -v perl >/dev/null || missing+=(perl) # Verilator's front end
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[[ -e /usr/include/lz4.h ]] || missing+=(liblz4-dev) # FST waveforms
[[ -e /usr/include/zlib.h ]] || missing+=(zlib1g-dev)
# cocotb embeds the interpreter, which needs its shared library.
"$python" - <<'PY' || missing+=(libpython3-dev)
import pathlib, sys, sysconfig
var = sysconfig.get_config_var
name = var("INSTSONAME") or var("LDLIBRARY") or ""
folders = [var("LIBDIR"), f"{var('LIBDIR')}/{var('MULTIARCH')}"]
sys.exit(not any(name and pathlib.Path(str(f), name).exists() for f in folders))
PY
if ((${#missing[@]})); then
  root=()
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || {
      echo "setup: ${missing[*]} missing: install them as root, or install sudo" >&2
      exit 1
    }
    root=(sudo)
  fi
  command -v apt-get >/dev/null || {
    echo "setup: ${missing[*]} missing, and no apt-get: install them by hand" >&2
    exit 1
  }
  "${root[@]}" apt-get update -q
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
    "${missing[@]}"
fi

"$python" - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"setup: Python {sys.version.split()[0]} is too old: SAT needs 3.11 or newer")
PY
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
