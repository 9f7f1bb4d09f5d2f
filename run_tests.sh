#!/usr/bin/env bash
# All tests, the files of them on all cores; arguments go to pytest, e.g. `bash run_tests.sh -k contrastive`.
set -euo pipefail
cd "$(dirname "$0")"
source utils/setup_python.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"    # of each process
exec "$PYTHON" -m pytest tests --numprocesses auto --maxprocesses 8 --dist loadfile "$@"
