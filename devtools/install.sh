#!/bin/sh
# Makes the virtual environment that every make target uses: `install.sh FOLDER`. EXTRAS names fewer of the extras.
set -eu
venv=$1
python=${PYTHON:-python3}
# One without pip is left of a set-up that was interrupted, or that failed: it is made again.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "got $("$python" --version), expected Python 3.11 or later: name one with make PYTHON=python3.11" >&2
    exit 1
  }
  "$python" -c 'import ensurepip' 2>/dev/null || {
    echo "got $python without ensurepip, expected one that makes virtual environments: on Debian and Ubuntu," \
      "apt-get install python3-venv" >&2
    exit 1
  }
  "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv reads no pip configuration: hand over what this machine's pip was told.
set -- --python "$venv/bin/python" --constraint constraints.txt
index=$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)
[ -z "${PIP_INDEX_URL:-$index}" ] || set -- "$@" --index-url "${PIP_INDEX_URL:-$index}"
if [ -n "${PIP_FIND_LINKS:-}" ]; then
  set -- "$@" --find-links "$PIP_FIND_LINKS"
else
  set -- "$@" --torch-backend cpu
fi
# Compiled now: where PYTHONDONTWRITEBYTECODE is set, each process would do it for itself, and Ray's agents, which have 15
# seconds to start, would be too late on two cores.
"$venv/bin/uv" pip install "$@" --compile-bytecode --group dev --editable ".[${EXTRAS:-airflow,prefect,torch,dask,ray,tensorflow,spark,s3,ssh,examples}]"
