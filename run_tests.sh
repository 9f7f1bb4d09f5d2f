#!/usr/bin/env bash
# All tests, in two processes side by side; with arguments in one, which gets them: `bash run_tests.sh -k contrastive`.
set -euo pipefail
cd "$(dirname "$0")"
source utils/setup_python.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"    # of each process
place="${TMPDIR:-/tmp}"
if [ "$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 8000000 ] 2>/dev/null; then    # KB
    place=/dev/shm                                # of 2,000 tests many wait for the disk
fi
work=$(mktemp -d "$place/omnisat-tests.XXXXXX")
other="" code=0
trap 'kill $other 2>/dev/null || true; rm -rf "$work"' EXIT
export PYTEST_DEBUG_TEMPROOT="$work"
if [ $# -gt 0 ]; then
    "$PYTHON" -m pytest tests "$@" || code=$?
else
    "$PYTHON" -m pytest tests/test_[r-z]*.py >"$work/log" 2>&1 &    # half of the time
    other=$!
    "$PYTHON" -m pytest tests/test_[!r-z]*.py || code=$?
    wait "$other" || code=$?
    cat "$work/log"
fi
exit "$code"
