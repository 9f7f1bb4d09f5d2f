"""Produce the cells of the paper's tables, a command a row. Called by run_tables.sh, which looks after the packages.

    bash run_tables.sh demo                          what OmniSat can do, on simulated tiles with a small model: 6
                                                     minutes on 2 CPU cores
    bash run_tables.sh table2                        the paper's configuration on the release, in data/ or --data DIR
    bash run_tables.sh table3 --dry-run              only print the commands, each of them can be run alone
    bash run_tables.sh all --demo                    every table on simulated data
    bash run_tables.sh probe                         frozen evaluation of OmniSat's pretrainings, results/probe.csv
                                                     (also --demo, --model)
    bash run_tables.sh table2 --demo --model omnisat,mine
                                                     the cells of these methods, one's own too
    bash run_tables.sh table2 --s1 repaired          the cells that see Sentinel-1 of TreeSatAI-TS, its scrambled files
                                                     put in order
    bash run_tables.sh all --seeds 0,1,2 --plan      what that will cost here: jobs, memory, disk, hours
    bash run_tables.sh all --status                  who is at work on it, and when it will be done

One job runs on each GPU (--gpus), those that others wait for first, then the longest. Several drivers, also on several
machines that share a file system, divide the jobs of one folder among them.

Rows go to results/TABLE.csv (demo: results/demo/; with --demo: results/demo-all/; repaired: results/repaired/),
checkpoints and logs to runs/. What is there already is not run again, what was stopped goes on. The exit code is 0 if
all rows are there, 1 if some failed, 75 if it was stopped by a signal.
"""
import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tables.cells import cells_of, key, paper_cells, sees_s1
from tables.commands import Commands
from tables.jobs import Jobs
from tables.schedule import ROOT, Machine, run_all
from utils.errors import run
from utils.numbers import whole, whole_list
from utils.results import COLUMNS, KEYS, TABLES, folder_of, write_row


def command_line():
    """The ArgumentParser."""
    arguments = argparse.ArgumentParser(prog="run_tables.sh", description=__doc__,
                                        formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("table", choices=[*TABLES, "fig5", "all", "demo", "probe"],
                           help="a table; fig5: what figure 5 shows; all; probe: frozen evaluation, not in the paper; "
                                "or demo: OmniSat's cells of TreeSatAI-TS and their probe, on simulated tiles, and "
                                "what they show: 6 minutes on 2 cores")
    arguments.add_argument("--list", action="store_true", help="print the cells, as CSV, and stop")
    arguments.add_argument("--dry-run", action="store_true",
                           help="print the commands that would run, one a line, and stop")
    arguments.add_argument("--only", metavar="PATTERN",
                           help="only cells whose line of --list matches this regular expression, e.g. "
                                "'treesatai-ts,omnisat,.*,s2,10$'")
    arguments.add_argument("--model", metavar="NAMES",
                           help="comma-separated methods of models/methods.py in place of all: of the paper's, such as "
                                "omnisat, the cells that it prints; of one's own each place of the table, pretrained "
                                "or not, that its entry fills")
    arguments.add_argument("--seeds", type=whole_list(0), default=[0], metavar="LIST",
                           help="comma-separated; each has its own pretraining and label subset (default: 0)")
    arguments.add_argument("--gpus", type=whole_list(0), metavar="LIST",
                           help="comma-separated numbers of the GPUs to use (default: all there are)")
    arguments.add_argument("--jobs", type=whole(1), metavar="N",
                           help="jobs at a time, which share the GPUs or the cores; what each prints goes to a file "
                                "beside its checkpoint (default: one a GPU; without a GPU one, in the demo and with "
                                "--demo one a core, at most 8)")
    arguments.add_argument("--nproc", type=whole(1), default=1,
                           help="processes of each pretraining, one a GPU; every other job has one (default: 1)")
    arguments.add_argument("--plan", action="store_true",
                           help="print what is left to do and what it costs on this machine, and stop; what a tile "
                                "takes is measured first, in some minutes, and kept")
    arguments.add_argument("--status", action="store_true",
                           help="print what the drivers of this table are at, and stop")
    arguments.add_argument("--data", metavar="DIR",
                           help="folder of the datasets, see README; relative to the repository (default: data)")
    arguments.add_argument("--demo", action="store_true", help="the table on generated data with small models")
    arguments.add_argument("--s1", choices=("released", "repaired"), default="released",
                           help="repaired: scrambled Sentinel-1 of TreeSatAI-TS put in order (docs/sentinel1-2017.md), "
                                "a table of its own with the cells that see it; the demo then has such files (default: "
                                "released)")
    arguments.add_argument("--python", default=sys.executable, help=argparse.SUPPRESS)    # as run_tables.sh found it
    return arguments


def chosen(args, arguments):
    """The cells that the options ask for. Where there is none, this is told, and the process ends."""
    if args.model and args.table == "demo":
        arguments.error("--model: the demo is OmniSat's; table2 --demo runs any method's cells on simulated tiles")
    try:
        cells = [cell for name in dict.fromkeys(args.model.split(",")) for cell in cells_of(args.table, name)
                 ] if args.model else paper_cells(args.table)
        cells = [cell for cell in cells if re.search(args.only or "", key(cell))]
    except re.error as error:
        arguments.error(f"--only: {args.only!r} is no regular expression: {error}")
    if not cells:
        arguments.error(f"--only: no cell matches {args.only!r}; see --list")
    if args.s1 == "released":
        return cells
    seen = [cell for cell in cells if sees_s1(cell)]
    if not seen:
        arguments.error(f"--s1 repaired: none of these {len(cells)} cells sees Sentinel-1 of treesatai-ts; leave it "
                        "out")
    print(f"{len(seen)} of {len(cells)} cells see Sentinel-1 of treesatai-ts; the others would be what they are",
          file=sys.stderr)
    return seen


def folder_of_data(args, arguments, demo):
    """The folder of the datasets. demo: "", or the name of the demo's folders, where it is made."""
    if demo and args.data:
        arguments.error(f"--data: the demo makes its own data in {demo}/; leave the option out")
    if demo == "demo" and args.s1 == "repaired":
        arguments.error("--s1 repaired: the demo's Sentinel-1 is in order; table2 --demo has scrambled files")
    data = str(folder_of(demo, args.s1)) if demo else args.data or "data"
    if not demo and not (args.dry_run or args.plan or args.status) and not Path(data).is_dir():
        arguments.error(f"{data}: no such folder; put or link the datasets there, or name their folder with --data "
                        "(see README)")
    return data


def machine_of(args, arguments, demo):
    """The Machine that the options ask for. Where they cannot be met, this is told, and the process ends."""
    there = gpus_here()
    gpus = there if args.gpus is None else tuple(map(str, args.gpus))
    if unknown := [gpu for gpu in gpus if gpu not in there]:
        arguments.error(f"--gpus: there is no GPU {', '.join(unknown)} here, "
                        + (f"but {', '.join(there)}" if there else "nor any other"))
    usual = min(8, os.cpu_count() or 1) if demo else len(gpus) or 1
    machine = Machine(args.jobs or max(usual, args.nproc if not gpus else 1), gpus)
    if args.nproc > machine.most():
        arguments.error(f"--nproc {args.nproc}: a pretraining of so many processes needs as many "
                        f"{'GPUs' if gpus else 'jobs at a time'}; there are {machine.most()}")
    return machine


def gpus_here():
    """The numbers of the GPUs that this process may use, as text."""
    import torch
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(visible.split(","))[:count] if visible else tuple(map(str, range(count)))


def plan(args, cells, commands, is_shown):
    """The Jobs. is_shown: whether all is asked for that the demo's claims are about."""
    jobs, seeds = Jobs(commands, args.dry_run or args.plan), list(dict.fromkeys(map(str, args.seeds)))
    if args.table == "probe":
        jobs.add_probes(cells, seeds)
        return jobs
    if is_shown:
        jobs.add_probes([cell for cell in cells if cell["pretraining"] == "self"][:1], seeds)
    jobs.add_cells(cells, seeds)
    return jobs


def print_plan(jobs, commands, machine):
    """--plan: of what is left, corrected by what was done."""
    from tables.cost import Costs
    from tables.plan import calibration_of, plan_text
    from tables.status import learn
    planned = list(jobs.planned.values())
    costs = Costs(commands, calibration_of(commands, machine, planned))
    done = learn(costs, commands.runs / "jobs.csv")
    print(plan_text(planned, costs, machine, done))


def carry_out(jobs, commands, machine):
    """Run the jobs. Returns {name: why} of those that failed."""
    from tables.cost import Costs, in_order
    from tables.plan import kept_calibration
    from tables.status import Status
    costs = Costs(commands, kept_calibration(commands))
    status = Status(commands.runs, costs)
    planned = in_order(jobs.planned.values(), costs)
    if machine.places > 1 and planned:
        print(f"{len(planned)} jobs, {machine.places} at a time; what each prints is in {commands.runs}/",
              file=sys.stderr, flush=True)
    return run_all(planned, machine, status, jobs.is_done)


def told(failed):
    """A line for each reason. failed: {name: why}."""
    names = {}
    for name, why in failed.items():
        names.setdefault(why, []).append(name)
    return [first + (f", and {len(others)} more" if others else "") + f": {why}"
            for why, (first, *others) in names.items()]


def main(argv=None):
    arguments = command_line()
    args = arguments.parse_args(argv)
    demo = "demo" if args.table == "demo" else "demo-all" if args.demo else ""    # the name of its folders
    cells = chosen(args, arguments)
    if (args.list or args.dry_run) and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)                         # `| head` is no error
    if args.list:
        print(",".join(KEYS), *map(key, cells), sep="\n")
        return 0

    machine = machine_of(args, arguments, demo)
    commands = Commands(args.python, folder_of_data(args, arguments, demo), demo, args.nproc, args.s1,
                        machine.readers())
    if args.status:
        from tables.status import drivers
        print(*drivers(commands.runs), sep="\n")
        return 0
    is_shown = demo == "demo" and not args.only                               # all that the claims are about
    jobs = plan(args, cells, commands, is_shown)
    for line in told(jobs.blocked):
        print(f"FAILED {line}", file=sys.stderr)
    if args.dry_run:
        print(*(shlex.join(job.command) for job in jobs.planned.values()), sep="\n")
        return 0
    if args.plan:
        print_plan(jobs, commands, machine)
        return 0

    for path, row in jobs.without:
        write_row(path, {name: row.get(name, "") for name in COLUMNS})
    failed = jobs.blocked | carry_out(jobs, commands, machine)
    results = commands.results.parent if args.s1 == "repaired" else commands.results
    shown = ["table2", "probe", "claims"] if is_shown else []
    compare = [args.python, "compare.py", *shown, "--results", str(results), *(["--demo"] if demo else [])]
    compared = subprocess.run(compare, cwd=ROOT).returncode
    if failed:
        total = len(jobs.planned) + len(jobs.blocked)
        print(f"\n{len(failed)} of {total} jobs failed; the same command runs them again:", file=sys.stderr)
        print(*(f"  {line}" for line in told(failed)), sep="\n", file=sys.stderr)
    return 1 if failed or compared else 0


if __name__ == "__main__":
    sys.exit(run(main))
