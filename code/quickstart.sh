#!/usr/bin/env bash
# Makes .venv (unless a virtual environment is active), installs what is pinned, and runs the whole system on real music.
#   bash code/quickstart.sh                 see `--help` for the rest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi
echo "installing what requirements.txt pins"
python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
exec python code/quickstart.py "$@"
