"""Places, order and status of jobs: who runs where, what is told, what several drivers and torchrun make of it."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_tables
from tables import schedule, status
from tables.commands import Commands
from tables.cost import Costs, Estimate, in_order, makespan
from tables.jobs import Job, Jobs
from tables.schedule import Machine, run_all
from tables.status import Status, drivers
from utils.errors import BUSY, STOPPED

ROOT = Path(__file__).parent.parent
CELL = {"table": "table2", "dataset": "treesatai-ts", "model": "omnisat", "pretraining": "none", "ablation": "none",
        "modality": "s2", "label_percent": "10"}


def job(name, code, folder, needs=(), **about):
    about = {"kind": "fine-tuning", "cell": CELL, "seed": "0"} | about
    return Job(name, [sys.executable, "-c", code], needs, Path(folder) / f"{name}.txt", **about)


class Known:
    """Costs of a test: {name: seconds}."""
    basis, calibration = "test", {}

    def __init__(self, seconds):
        self.of, self.learned = seconds, {}

    def seconds(self, job):
        return Estimate(self.of[job.name], self.of[job.name], 0.0)

    expected = seconds

    def learn(self, group, seconds, expected):
        self.learned[group] = seconds, expected


def test_places_are_gpus_or_shares_of_the_cores():
    two = Machine(4, ("0", "3"), cores=8)    # two jobs on each of two GPUs
    assert two.variables([0]) == {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2"}
    assert two.variables([1, 2]) == {"CUDA_VISIBLE_DEVICES": "3,0", "OMP_NUM_THREADS": "2"}
    assert two.take({0, 1, 2, 3}, 2) == [0, 1] and two.take({0, 2, 3}, 2) == [0, 3]
    assert two.take({0, 2}, 2) is None                                        # of one GPU
    assert two.most() == 2 and two.readers() == 1
    assert Machine(1, ("5",), 64).variables([0]) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert Machine(1, (), 2).variables([0]) == {} and Machine(1, (), 2).readers() is None
    assert Machine(8, tuple("01234567"), 64).readers() is None and Machine(8, tuple("01234567"), 24).readers() == 2
    assert Machine(3, (), 3).take({0, 2}, 2) == [0, 2]


@pytest.mark.parametrize("options, here, expected", [
    ([], ("0", "1"), Machine(2, ("0", "1"))), (["--gpus", "1"], ("0", "1"), Machine(1, ("1",))),
    (["--jobs", "6"], ("0", "1"), Machine(6, ("0", "1"))), (["--nproc", "2"], ("0", "1"), Machine(2, ("0", "1"))),
    ([], (), Machine(1)), (["--nproc", "3"], (), Machine(3)), (["--jobs", "2"], (), Machine(2)),
    (["--gpus", "2"], ("0", "1"), "no GPU 2 here, but 0, 1"), (["--gpus", "0"], (), "no GPU 0 here, nor any other"),
    (["--nproc", "3"], ("0", "1"), "--nproc 3: a pretraining of so many processes needs as many GPUs; there are 2"),
    (["--nproc", "3", "--jobs", "2"], (), "needs as many jobs at a time; there are 2")])
def test_options_make_the_machine(options, here, expected, monkeypatch, capsys):
    monkeypatch.setattr(run_tables, "gpus_here", lambda: here)
    arguments = run_tables.command_line()
    if isinstance(expected, Machine):
        assert run_tables.machine_of(arguments.parse_args(["table2", *options]), arguments, "") == expected
        return
    with pytest.raises(SystemExit):
        run_tables.machine_of(arguments.parse_args(["table2", *options]), arguments, "")
    assert expected in capsys.readouterr().err


def test_visible_gpus_are_those_of_the_environment(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_tables.gpus_here() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert run_tables.gpus_here() == ("4", "7")


def test_each_job_sees_its_own_gpu_and_a_pretraining_several(tmp_path):
    """Never two jobs on one GPU at a time, and the one of two processes gets both, although others were ready."""
    note = ("import os, time; start = time.time(); time.sleep(0.3); "
            f"print(os.environ['CUDA_VISIBLE_DEVICES'], start, time.time(), file=open(r'{tmp_path}/seen', 'a'))")
    planned = [job("a", note, tmp_path), job("b", note, tmp_path, processes=2), job("c", note, tmp_path),
               job("d", note, tmp_path)]
    assert run_all(planned, Machine(2, ("0", "1"), 2)) == {}
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert sorted(gpus for gpus, *_ in seen) in (["0", "0", "0,1", "1"], ["0", "0,1", "1", "1"])
    assert len({gpus for gpus, *_ in seen}) == 3
    for at, (gpus, start, end) in enumerate(seen):
        for other, begins, ends in seen[at + 1:]:
            assert set(gpus.split(",")).isdisjoint(other.split(",")) or float(begins) >= float(end) - 0.01


def test_what_others_wait_for_is_first_then_the_longest():
    jobs = [Job("short", [], (), Path("x")), Job("data", [], (), Path("x")), Job("long", [], ("data",), Path("x")),
            Job("alone", [], (), Path("x")), Job("small start", [], (), Path("x")),
            Job("large", [], ("small start",), Path("x"))]
    costs = Known({"short": 1, "data": 5, "long": 10, "alone": 50, "small start": 2, "large": 100})
    assert [each.name for each in in_order(jobs, costs)] == ["small start", "data", "large", "alone", "long", "short"]


def test_makespan_is_that_of_the_schedule():
    def of(name, needs=(), processes=1):
        return Job(name, [], needs, Path("x"), processes=processes)
    a, b, c = of("a"), of("b", ("a",)), of("c")
    seconds = {"a": 3, "b": 4, "c": 5, "d": 2}
    assert makespan([a, b, c], seconds, 1) == 12 and makespan([a, b, c], seconds, 2) == 7
    assert makespan([b, c], seconds, 2, [(2, a)]) == 6                         # a is at work, two seconds are left
    assert makespan([a, of("d", processes=2), c], seconds, 2) == 10            # c does not overtake d
    assert makespan([], seconds, 2) == 0


def test_status_tells_what_runs_and_what_it_took(tmp_path, capfd):
    """A line a job with what is left and until when; the same from outside, while it runs; then jobs.csv."""
    costs, seen = Known({"a": 10, "b": 1000}), []
    planned = [job("a", "print(1)", tmp_path), job("b", "import time; time.sleep(0.5)", tmp_path)]
    keeper = Status(tmp_path, costs)
    beat = keeper.beat
    keeper.beat = lambda driver: (beat(driver), seen.append(drivers(tmp_path)))
    assert run_all(planned, Machine(), keeper) == {}
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[") and " s  " in line]
    assert lines[0].startswith("[1/2]") and "s  a; 0 running, 1 left, until about" in lines[0]
    assert lines[1].startswith("[2/2]") and lines[1].endswith("s  b; the last one")
    during = next(told for told in seen if any(") " not in line and "  b  (" in line for line in told))
    assert f"driver {os.getpid()} on " in during[0] and "1 of 2 jobs done, 1 running, 0 left, until about" in during[0]
    rows = (tmp_path / "jobs.csv").read_text().splitlines()
    assert rows[0] == ",".join(status.TOOK) and len(rows) == 3
    assert rows[1].startswith("a,fine-tuning,treesatai-ts,omnisat,") and ",10.0,test,1,1," in rows[1]
    assert not list((tmp_path / "status").iterdir()) and drivers(tmp_path) == [f"no driver is at work in {tmp_path}"]
    again = Known({})
    assert status.learn(again, tmp_path / "jobs.csv") == 2 and again.learned.keys() == {
        ("fine-tuning", "treesatai-ts", "omnisat")}


def test_status_tells_a_driver_that_was_killed(tmp_path):
    (tmp_path / "status").mkdir()
    told = {"host": "far", "pid": 7, "began": 0.0, "told": time.time() - 1000, "jobs": 3, "left": 1, "failed": [],
            "running": [], "ends": None}
    (tmp_path / "status" / "far-7.json").write_text(json.dumps(told))
    line, = drivers(tmp_path)
    assert line.startswith("driver 7 on far: not heard of since ") and "was killed" in line


def test_what_another_driver_has_done_is_not_done_again(tmp_path, capfd):
    done = []
    planned = [job("a", "raise SystemExit(1)", tmp_path), job("b", "print('after')", tmp_path, ("a",))]
    assert run_all(planned, Machine(), is_done=lambda each: each.name == "a" and not done.append(each.name)) == {}
    assert done == ["a"] and "[1/2] another driver has done a" in capfd.readouterr().err


def test_jobs_are_done_when_their_rows_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(Commands("python", "demo", "demo", 1))
    jobs.add_cells([CELL], ["0"])
    found = {each.kind: each for each in jobs.planned.values()}
    assert found.keys() == {"data", "fine-tuning"} and not any(map(jobs.is_done, found.values()))
    row = CELL | {"seed": "0", "scale": "demo", "status": "ok", "s1": "released"}
    run_tables.write_row(jobs.commands.csv(CELL), dict.fromkeys(run_tables.COLUMNS, "") | row)
    assert jobs.is_done(found["fine-tuning"]) and not jobs.is_done(found["data"])


@pytest.mark.parametrize("code", [BUSY, STOPPED])
def test_exit_codes_under_torchrun_keep_their_meaning(tmp_path, code, capfd, monkeypatch):
    """torchrun ends with 1 whatever its processes ended with; the driver still knows a taken folder from an error."""
    monkeypatch.setattr(schedule, "RETRY", 0.1)
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n"
                      "from utils.errors import UserError, run\nimport os\n"
                      f"tries = Path({str(tmp_path)!r}, 'tries' + os.environ['RANK'])\n"
                      "def main():\n"
                      "    tries.write_text((tries.read_text() if tries.exists() else '') + 'x')\n"
                      "    if len(tries.read_text()) < 2:\n"
                      f"        raise UserError('no', code={code}, is_told=True)\n"
                      "run(main)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    failed = run_all([Job("a", command, (), tmp_path / "a.txt", "pretraining", CELL, "0", "", 2)], Machine(2))
    if code == BUSY:
        assert failed == {} and "another process is at work on a: waiting for it" in capfd.readouterr().err
    else:
        assert failed["a"].startswith(f"exit code {STOPPED}, ")
    assert not (tmp_path / "a.code").exists()


def test_status_from_another_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_tables.main(["table2", "--demo", "--status"]) == 0
    assert capsys.readouterr().out == f"no driver is at work in {Path('runs', 'demo-all')}\n"


def test_costs_follow_the_commands(tmp_path, monkeypatch):
    """Tiles and steps of jobs as the scripts' own options say, and hours from what was measured, then learned."""
    monkeypatch.chdir(tmp_path)
    commands = Commands("python", "data", "", 2)
    jobs = Jobs(commands, is_dry=True)
    jobs.add_cells([CELL | {"pretraining": "self", "modality": "all"}], ["0"])
    pretraining, tuning = jobs.planned.values()
    costs = Costs(commands)
    train, val, test = costs.tiles("treesatai-ts").values()
    assert (train, val, test) == (38536, 6801, 5044)
    load = costs.load(pretraining)
    assert load.work == ("pretrain", "treesatai-ts", "omnisat", "all", (256, 6), 128) and load.workers == 4
    assert load.trained == (41 * train, 250 * train) and load.steps == (41 * 101, 250 * 101) and load.scored == 0
    load = costs.load(tuning)                                                 # 3,854 tiles: 11 steps a pass, two passes
    assert load.trained == (50 * 2 * 3854, 200 * 2 * 3854) and load.steps == (50 * 22, 200 * 22)
    assert load.validated == (50 * val, 200 * val) and load.scored == test
    known = {"date": "today", "startup": 5.0, "read": {"treesatai-ts vhr s2 s1": 0.8},
             "works": {costs.load(pretraining).work.name(): {"step": 0.1, "forward": 0.03, "params": 10, "gb": 2.0}}}
    costs = Costs(commands, known)
    spent = 250 * (train * 0.2 + val * 0.2)                                   # reading is slower: 0.8 s on four readers
    assert costs.seconds(pretraining).most == pytest.approx(5 + spent / 2)    # two processes
    assert costs.seconds(pretraining).reading == pytest.approx(250 * (train * 0.1 + val * 0.17) / 2)
    costs.learn(("pretraining", "treesatai-ts", "omnisat"), 50.0, 100.0)
    assert costs.seconds(pretraining).most == pytest.approx((5 + spent / 2) / 2)
    assert costs.seconds(tuning).most == pytest.approx(costs.expected(tuning).most / 2)    # what all took


def test_plan_measures_once_and_says_what_is_left(tmp_path, monkeypatch, capsys):
    """Of two cells of the demo, in a folder of their own."""
    monkeypatch.setattr("tables.plan.SECONDS", 4)
    original = Commands.__init__

    def elsewhere(self, *arguments):
        original(self, *arguments)
        self.results, self.runs = tmp_path / "results", tmp_path / "runs"
    monkeypatch.setattr(Commands, "__init__", elsewhere)
    monkeypatch.chdir(ROOT)
    cells = "treesatai.*,(omnisat,none.*,s2,10|mosaiks,.*)$"
    command = ["table2", "--demo", "--plan", "--jobs", "1", "--only", cells]
    assert run_tables.main(command) == 0
    first = capsys.readouterr()
    assert "calibration: 2 kinds of steps" in first.err
    assert first.out.startswith("3 jobs to do; 1 at a time, each on ")
    assert "hours of jobs" in first.out and "mosaiks" in first.out and "omnisat" in first.out
    found = json.loads((tmp_path / "results" / "calibration.json").read_text())
    assert len(found["works"]) == 2 and found["startup"] > 0 and found["generate"]["treesatai"] > 0
    assert all(each["step"] > 0 for each in found["works"].values())
    assert {name.split()[2]: each["params"] > 0 for name, each in found["works"].items()} == {
        "omnisat": True, "mosaiks": False}
    assert run_tables.main(command) == 0
    second = capsys.readouterr()
    assert second.out == first.out and "calibration" not in second.err


def test_a_driver_that_is_killed_leaves_no_processes_of_torchrun(tmp_path):
    """Nor what torchrun started."""
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils.files import "
                       "end_with_parent\nend_with_parent()\n"
                       f"open(r'{tmp_path}/pid' + os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(sleeper)]
    script = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom tables.jobs import Job\n"
              f"from tables.schedule import Machine, run_all\nrun_all([Job('a', {command!r}, (), "
              f"Path(r'{tmp_path}/log'), processes=2)], Machine(2))")
    driver, until = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL), time.time() + 120
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    while not all(file.exists() and file.read_text() for file in files):
        assert time.time() < until and driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    left = [int(file.read_text()) for file in files]
    while left and time.time() < until:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()
                and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]]
        time.sleep(0.1)
    assert not left
