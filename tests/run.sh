#!/usr/bin/env bash
# Makes .venv (unless a virtual environment is active), installs what is pinned, checks style and types, runs the tests.
#   bash tests/run.sh                                        everything
#   bash tests/run.sh tests/test_models.py -k golden         some of it, in pytest's words
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  source .venv/bin/activate
fi
echo "installing what tests/requirements.txt pins"
python -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
if [ $# -eq 0 ]; then
  ruff check .
  ruff format --check .
  mypy --no-error-summary code/*.py process_data/*.py
  set -- tests
fi
exec python -m pytest -p no:cacheprovider -q -rs -n 2 --dist worksteal --timeout 600 "$@"
