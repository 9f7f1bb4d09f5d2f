# Sourced by run_tables.sh and run_tests.sh: sets PYTHON to an interpreter that has the packages of requirements.txt.
# An active environment that has them is used as it is; otherwise .venv is made (once) and filled.
find_python() {
    local candidate
    for candidate in .venv/bin/python python python3; do
        if "$candidate" -c 'import h5py, imagecodecs, lightgbm, matplotlib, numpy, pytest, sklearn, tensorboard, tifffile, torch, tqdm' 2>/dev/null; then
            PYTHON=$candidate
            return
        fi
    done
    for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "installing the packages of requirements.txt into .venv (once, some minutes) ..." >&2
            "$candidate" -m venv .venv
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
            PYTHON=.venv/bin/python
            return
        fi
    done
    echo "error: no Python 3.10 or newer found; install one and run this again" >&2
    exit 1
}
find_python
