"""Python processes that tests start, as forks of the tests' own, which has torch and the rest loaded.

That spares each five seconds. A fork forgets what the tests have of the project, of standard output, signals and
warnings. It then runs its script, module or text from the start, as a process of its own with its own folder,
environment and exit code. Torchrun, which has threads when it starts its processes, remains a new process. So does all
where torch has more than one thread, as OpenMP's threads do not outlive a fork: `OMP_NUM_THREADS=2 bash run_tests.sh`
forks nothing.
"""
import atexit
import importlib
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
import traceback
import types
import warnings

import torch

LOADED = ("torch._dynamo", "torch.utils.tensorboard", "matplotlib.pyplot", "sklearn.metrics")
TORCHRUN = "torch.distributed.run"
new_process = subprocess.Popen._execute_child


def start_forks():
    """From here on subprocess forks this process, where it would start Python with a script or a module."""
    for name in LOADED:
        importlib.import_module(name)
    subprocess.Popen._execute_child = execute_child


def execute_child(self, args, *others):
    """In place of subprocess.Popen._execute_child, whose arguments Python 3.10 to 3.13 have in this order."""
    _, preexec_fn, _, _, cwd, env, *_ = others
    pipes = others[9:15]
    words = [os.fspath(word) for word in args] if not isinstance(args, (str, bytes)) else []
    is_known = words[1:] and (words[1] in ("-c", "-m") or words[1].endswith(".py"))
    if words[:1] != [sys.executable] or not is_known or TORCHRUN in words or torch.get_num_threads() > 1:
        return new_process(self, args, *others)
    sys.stdout.flush()
    sys.stderr.flush()
    self.pid = os.fork()
    if self.pid == 0:
        code = 1
        try:
            for number, pipe in enumerate((pipes[0], pipes[3], pipes[5])):    # the child's ends
                if pipe != -1:
                    os.dup2(pipe, number)
            forget_the_tests(cwd, env)
            if preexec_fn is not None:
                preexec_fn()
            code = run_as_main(words[1:])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    self._child_created = True
    self._close_pipe_fds(*pipes)


def forget_the_tests(cwd, env):
    """Of this process, but for the packages that it has loaded."""
    os.closerange(3, 4096)
    for sent in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(sent, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    logging.root.handlers.clear()
    warnings.resetwarnings()
    for usual in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", usual)
    warnings.showwarning = warnings._showwarning_orig
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", errors="backslashreplace",
                                closefd=False))
    sys.stderr.reconfigure(line_buffering=True)
    if cwd is not None:
        os.chdir(cwd)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    for name, module in list(sys.modules.items()):
        path = str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), ""))
        if path and not is_installed(path):
            del sys.modules[name]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def is_installed(path):
    """Whether it is of Python or of a package, not of the project, nor of a copy of it."""
    return path.startswith(sysconfig.get_path("stdlib")) or "site-packages" in path or "dist-packages" in path


def run_as_main(words):
    """Run a script, after -m a module, or after -c a text. Returns the exit code."""
    kind = words[0] if words[0] in ("-c", "-m") else ""
    sys.argv = ["-c", *words[2:]] if kind == "-c" else words[bool(kind):]
    here = {"-c": "", "-m": os.getcwd()}.get(kind, os.path.dirname(os.path.abspath(words[0])))
    told = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [here, *told, *filter(is_installed, sys.path)]

    def main():
        sys.stdin = open(0, encoding="utf-8", closefd=False)                  # multiprocessing has closed it
        if kind == "-c":
            sys.modules["__main__"] = module = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), module.__dict__)
        elif kind == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    code = multiprocessing.get_context("fork").Process(target=main)._bootstrap()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code
