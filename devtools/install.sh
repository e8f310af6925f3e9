#!/bin/sh
# Makes the virtual environment that every make target uses: `install.sh FOLDER`.
set -eu
venv=$1
python=${PYTHON:-python3}
if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "got $("$python" --version), expected Python 3.11 or later: name one with make PYTHON=python3.11" >&2
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
"$venv/bin/uv" pip install "$@" --group dev --editable ".[${EXTRAS:-airflow,prefect,torch,dask,ray,tensorflow,spark,s3,ssh,examples}]"
