#!/usr/bin/env bash
# All tests; arguments go to pytest, e.g. `bash run_tests.sh -k contrastive`.
set -euo pipefail
cd "$(dirname "$0")"
source utils/setup_python.sh
exec "$PYTHON" -m pytest tests "$@"
