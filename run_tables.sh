#!/usr/bin/env bash
# The paper's tables, a command a row; `bash run_tables.sh --help` tells what it can do, `bash run_tables.sh demo` shows it.
set -euo pipefail
cd "$(dirname "$0")"
source utils/setup_python.sh
exec "$PYTHON" run_tables.py --python "$PYTHON" "$@"
