#!/usr/bin/env bash
# All tests, in two processes side by side; with arguments in one, which gets them: `bash run_tests.sh -k contrastive`.
set -euo pipefail
cd "$(dirname "$0")"
source utils/setup_python.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"    # of each process
if [ $# -gt 0 ]; then
    exec "$PYTHON" -m pytest tests "$@"
fi
log=$(mktemp)
"$PYTHON" -m pytest tests/test_[r-z]*.py >"$log" 2>&1 &    # half of the time
other=$! code=0
trap 'kill "$other" 2>/dev/null || true; rm -f "$log"' EXIT
"$PYTHON" -m pytest tests/test_[!r-z]*.py || code=$?
wait "$other" || code=$?
cat "$log"
exit "$code"
