#!/usr/bin/env bash
# Every GPU test and benchmark in under 8 minutes; writes one dated JSON under results/.
# PYTHON=path chooses another Python than .venv's.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
exec "$python" tests/benchmarks/gpu_suite.py "$@"
