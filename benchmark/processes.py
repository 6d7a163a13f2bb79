"""Measures the three ways to start processes: seconds from launch until every worker has updated,
and MB of memory per further worker (proportional set size: a page of n processes counts as 1/n).

    python benchmark/processes.py --out benchmark/results/processes.csv

Launches each method in turn, --repeats times, on an idle machine. Linux only: it reads /proc.
"""

import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from provenance import header, machine

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = """
import multiprocessing, sys, time
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.path.insert(0, {root!r})
    from {script} import Args, Shared, main
    share = Shared.__init__
    def watched(self, *args):
        import threading
        share(self, *args)
        def watch():
            while not (self.updates.any() if {script!r} == "a2c" else self.updates.all()):
                time.sleep(0.01)
            print("all", flush=True)
        threading.Thread(target=watch, daemon=True).start()
    Shared.__init__ = watched
    main(Args(num_workers=int(sys.argv[2]), log_dir=sys.argv[3], total_timesteps=10**9))
"""


@dataclass
class Args:
    out: Path
    """CSV to write"""
    script: str = "a3c"
    """script to measure, without .py"""
    num_workers: int = 16
    """number of workers"""
    repeats: int = 3
    """launches of each method"""


def proportional_set_size(pid: int) -> float:
    """MB of memory of a process, a page shared by n processes counting for 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                children.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return children + [grandchild for child in children for grandchild in descendants(child)]


def launch(args: Args, method: str, num_workers: int) -> tuple[float, float]:
    """Seconds until every worker has updated, and MB of all processes two seconds later."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch.py"
        file.write_text(LAUNCH.format(root=str(ROOT), script=args.script))
        words = [sys.executable, str(file), method, str(num_workers), folder]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        start = time.monotonic()
        process = subprocess.Popen(words, start_new_session=True, **pipes)
        try:
            if not any(line == "all\n" for line in process.stdout):
                raise RuntimeError(f"ended early: {words}")
            seconds = time.monotonic() - start
            time.sleep(2)
            memory = sum(map(proportional_set_size, [process.pid, *descendants(process.pid)]))
        finally:  # also if the measurement is interrupted
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return seconds, memory


def end_programs_when_killed() -> None:
    """Turns SIGTERM and SIGHUP into SystemExit, so that no program outlives the measurement."""
    for signum in signal.SIGTERM, signal.SIGHUP:
        signal.signal(signum, lambda signum, frame: sys.exit(128 + signum))


def main(args: Args) -> None:
    end_programs_when_killed()
    rows = []
    for repeat in range(args.repeats):
        for method in ("fork", "forkserver", "spawn"):
            seconds, memory = launch(args, method, args.num_workers)
            _, memory_of_one = launch(args, method, 1)
            further = (memory - memory_of_one) / (args.num_workers - 1)
            rows.append(
                (args.script, method, args.num_workers, repeat, f"{seconds:.2f}", f"{further:.1f}")
            )
            print(*rows[-1], flush=True)
    with open(args.out, "w", newline="") as file:
        flags = f"--script {args.script} --num-workers {args.num_workers} --repeats {args.repeats}"
        command = f"python benchmark/processes.py --out {args.out} {flags}"
        loaded = f"{machine()}; load at the end, of its own: {os.getloadavg()[0]:.1f}"
        file.write(header(command, machine=loaded))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            (
                "script",
                "method",
                "workers",
                "repeat",
                "seconds_until_all_updated",
                "mb_per_further_worker",
            )
        )
        writer.writerows(rows)
    for method in ("fork", "forkserver", "spawn"):
        values = [(float(row[4]), float(row[5])) for row in rows if row[1] == method]
        seconds, memory = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{method:10} {seconds:6.1f} s {memory:6.1f} MB per further worker")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
