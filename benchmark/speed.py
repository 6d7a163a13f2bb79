"""Measures agent steps per second on Breakout: the scripts, their peers, the environment alone.

    python benchmark/speed.py --peers-python PATH

The programs to compare are started together. They take turns of one second, in which the others are
suspended, so that a change of the machine's speed affects all of them alike. Since two launches of
the same program differ, all of this is repeated. Also measures the seconds from the start until
each of 16 workers has made an update, and the memory of one more worker. Writes a CSV, and prints
tables of medians, ranges and ratios; --table FILE prints those of a CSV that is there. It needs an
otherwise idle Linux machine, and takes some twenty minutes.

The peers need a virtual environment of their own (see benchmark/requirements.txt), whose
interpreter is PATH. The value methods are measured with the final ε of each worker, because the
random actions of a run's beginning need no network.
"""

import contextlib
import csv
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import tyro
from provenance import header, machine, output, read

BENCHMARK = Path(__file__).resolve().parent
ROOT = BENCHMARK.parent
SCRIPTS = "onestep_q_async", "sarsa_async", "nstep_q_async", "a3c", "a2c"
WORKERS = 1, 2, 4, 8, 16
TOGETHER = (1,), (2, 16), (4,), (8,)  # numbers of workers whose programs take turns
PEERS = {
    ("PFRL A3C", 1): ("pfrl_a3c.py", "1"),
    ("PFRL A3C", 2): ("pfrl_a3c.py", "2"),
    ("SB3 A2C, DummyVecEnv", 16): ("sb3_a2c.py", "16", "dummy"),
    ("SB3 A2C, SubprocVecEnv", 16): ("sb3_a2c.py", "16", "subproc"),
}
VERSIONS = """
from importlib.metadata import version
packages = "torch", "gymnasium", "ale-py", "pfrl", "stable-baselines3"
print(", ".join(f"{package} {version(package)}" for package in packages))
"""
COLUMNS = (
    "what",
    "workers",
    "launch",
    "round",
    "steps_per_second",
    "seconds_until_all_updated",
    "mb_per_further_worker",
)
WARM_UP = 1000  # agent steps before the first turn
SETTLE = 0.1  # seconds at the start of each turn that do not count
# Programs print lines of agent steps and seconds of the monotonic clock, as the peers do.
SCRIPT = """
import sys, threading, time
sys.path.insert(0, {root!r})
import {script} as script
share = script.Shared.__init__
def watched(self, *args):
    share(self, *args)
    def watch():
        before = 0
        while True:
            if (taken := int(self.steps.sum())) != before:
                print(before := taken, time.monotonic(), flush=True)
            time.sleep(0.01)
    threading.Thread(target=watch, daemon=True).start()
script.Shared.__init__ = watched
flags = {flags}
if hasattr(script.Args, "exploration_steps"):
    flags["exploration_steps"] = 1
flags |= dict(log_dir="runs", total_timesteps=10**9, checkpoint_interval=1e9)
script.main(script.Args(num_workers={workers}, **flags))
"""
ENVIRONMENT = """
import multiprocessing, sys, time
sys.path.insert(0, {root!r})
from a3c import make_env
def play(steps, rank):
    env = make_env("BreakoutNoFrameskip-v4")
    env.reset(seed=rank)
    env.action_space.seed(rank)
    while True:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps[rank] += 1
        if terminated or truncated:
            env.reset()
steps = multiprocessing.RawArray("q", {workers})
fork = multiprocessing.get_context("fork")
for rank in range({workers}):
    fork.Process(target=play, args=(steps, rank), daemon=True).start()
while True:
    print(sum(steps), time.monotonic(), flush=True)
    time.sleep(0.01)
"""


@dataclass
class Args:
    out: Path = Path("benchmark/results/speed.csv")
    """CSV to write"""
    peers_python: str = ""
    """interpreter of the environment with the peers; without it they are left out"""
    seconds: float = 1.0
    """length of a turn"""
    rounds: int = 5
    """turns of each after a launch, two at least"""
    launches: int = 3
    """launches of each"""
    table: str = ""
    """CSV to print the tables of, instead of measuring"""


class Configuration:
    """A program that prints steps and seconds. It runs only in its turns."""

    def __init__(self, command: list[str]):
        self.folder, self.lines = tempfile.TemporaryDirectory(), []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(
            command, cwd=self.folder.name, start_new_session=True, **pipes
        )
        threading.Thread(target=self.read, daemon=True).start()
        deadline = time.monotonic() + 300
        try:
            while not self.lines or self.lines[-1][0] < WARM_UP:
                if self.process.poll() is not None:
                    raise RuntimeError(f"ended early: {command}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no {WARM_UP} steps in five minutes: {command}")
                time.sleep(0.1)
            self.send(signal.SIGSTOP)
        except BaseException:  # a measurement that is interrupted leaves no program behind
            self.end()
            raise

    def read(self) -> None:
        for line in self.process.stdout:
            words = line.split()
            if len(words) == 2 and words[0].isdigit():  # packages print other lines
                self.lines.append((int(words[0]), float(words[1])))

    def send(self, signum: int) -> None:
        os.killpg(self.process.pid, signum)

    def turn(self, seconds: float) -> float:
        """Agent steps per second between the first and the last line of a turn."""
        start, printed = time.monotonic(), len(self.lines)
        self.send(signal.SIGCONT)
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        lines = [line for line in self.lines[printed:] if line[1] >= start + SETTLE]
        if len(lines) < 2:
            raise RuntimeError(f"fewer than two lines in a turn: {self.process.args}")
        (first_steps, first), (last_steps, last) = lines[0], lines[-1]
        return (last_steps - first_steps) / (last - first)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended early
            self.send(signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def take_turns(commands: dict, rounds: int, seconds: float) -> dict[object, list[float]]:
    """Agent steps per second of each command in each round."""
    processes.end_programs_when_killed()
    configurations = {}
    try:
        for key, command in commands.items():
            configurations[key] = Configuration(command)
        rates = {key: [] for key in commands}
        for _ in range(rounds):
            for key, configuration in configurations.items():
                rates[key].append(configuration.turn(seconds))
    finally:
        for configuration in configurations.values():
            configuration.end()
    return rates


def play(workers: int) -> list[str]:
    """The command that plays at random with so many processes, and prints steps and seconds."""
    return [sys.executable, "-c", ENVIRONMENT.format(root=str(ROOT), workers=workers)]


def train(script: str, workers: int, folder: Path = ROOT, **flags: Any) -> list[str]:
    """The command that trains with a script of this folder, and prints steps and seconds."""
    text = SCRIPT.format(root=str(folder), script=script, workers=workers, flags=flags)
    return [sys.executable, "-c", text]


def configurations(args: Args, workers: tuple) -> dict[tuple[str, int], list[str]]:
    """The commands to compare, by name and number of workers."""
    commands = {}
    for n in workers:
        commands["environment alone", n] = play(n)
        for script in SCRIPTS:
            commands[f"{script}.py", n] = train(script, n)
        for peer, (file, *words) in PEERS.items():
            if args.peers_python and peer[1] == n:
                commands[peer] = [args.peers_python, str(BENCHMARK / "peers" / file), *words]
    return commands


def measure(args: Args) -> None:
    processes.end_programs_when_killed()
    command = (
        f"python benchmark/speed.py --seconds {args.seconds:g} --rounds {args.rounds} "
        f"--launches {args.launches} --peers-python PATH; Breakout, the scripts with seed 1"
    )
    peers = output(args.peers_python, "-c", VERSIONS) if args.peers_python else "not timed"
    idle = f"{machine()}; load before: {os.getloadavg()[0]:.1f}"
    with args.out.open("w", newline="") as file:
        file.write(header(command, machine=idle, peers=peers))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for launch in range(args.launches):
            for script in SCRIPTS:
                run = processes.Args(out=args.out, script=script)
                seconds, memory = processes.launch(run, "fork", 16)
                further = (memory - processes.launch(run, "fork", 1)[1]) / 15
                writer.writerow(
                    (f"{script}.py", 16, launch, "", "", f"{seconds:.2f}", f"{further:.1f}")
                )
            for workers in TOGETHER:
                rates = take_turns(configurations(args, workers), args.rounds, args.seconds)
                writer.writerows(
                    (*key, launch, turn, f"{rate:.1f}", "", "")
                    for key, of_key in rates.items()
                    for turn, rate in enumerate(of_key)
                )
                file.flush()


def table(corner: str, columns: tuple, rows: dict[str, list]) -> None:
    print(f"| {corner} | {' | '.join(map(str, columns))} |\n|{'---|' * (len(columns) + 1)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print()


def spread(values: list[float], digits: int) -> str:
    """The median, and the middle half of the values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def report(path: Path) -> None:
    """Prints the medians, ranges and ratios of a CSV, as Markdown.

    A ratio is of two turns in the same round.
    """
    values = {column: {} for column in COLUMNS[4:]}
    head, rows = read(path)
    for row in rows:
        for column in values:
            if row[column]:
                values[column].setdefault((row["what"], int(row["workers"])), []).append(
                    float(row[column])
                )
    rates, seconds, memory = values.values()
    names = list(dict.fromkeys(name for name, _ in rates))  # the environment first

    def ratio(a: tuple, b: tuple) -> str:
        pairs = zip(rates[a], rates[b], strict=True) if a in rates and b in rates else []
        return spread([one / other for one, other in pairs], 2) if pairs else ""

    print("Agent steps per second, median (middle half), by number of workers:\n")
    cell = {key: spread(of_key, 0) for key, of_key in rates.items()}
    table("", WORKERS, {name: [cell.get((name, n), "") for n in WORKERS] for name in names})

    print(
        "The same for each core at work (one for each worker, until there are no more), "
        "and for each worker:\n"
    )
    cores = int(re.search(r"(\d+) cores", head["machine"])[1])
    median = {key: statistics.median(of_key) for key, of_key in rates.items()}
    cell = {
        (name, n): f"{rate / min(n, cores):.0f}, {rate / n:.0f}"
        for (name, n), rate in median.items()
    }
    table("", WORKERS, {name: [cell.get((name, n), "") for n in WORKERS] for name in names})

    print("Share of the environment alone, with as many workers or environments:\n")
    table(
        "",
        WORKERS,
        {name: [ratio((name, n), (names[0], n)) for n in WORKERS] for name in names[1:]},
    )

    print("Ratios:\n")
    ratios = {
        f"a3c.py to PFRL's A3C, workers: {n}": [("a3c.py", n), ("PFRL A3C", n)] for n in (1, 2)
    }
    ratios |= {
        f"a2c.py to {name}, workers: {n}": [("a2c.py", n), (name, n)]
        for name, n in PEERS
        if "A2C" in name
    }
    ratios |= {
        f"{s}.py to a3c.py, workers: {n}": [(f"{s}.py", n), ("a3c.py", n)]
        for s in SCRIPTS[:3]
        for n in (1, 16)
    }
    ratios |= {f"{s}.py, 16 workers to 2": [(f"{s}.py", 16), (f"{s}.py", 2)] for s in SCRIPTS}
    table("", ("ratio",), {name: [cell] for name, pair in ratios.items() if (cell := ratio(*pair))})

    print("Launch and memory with 16 workers, medians:\n")
    rows = {
        key[0]: [f"{statistics.median(x[key]):.1f}" for x in (seconds, memory)] for key in seconds
    }
    table(
        "",
        (
            "seconds until all workers have made an update",
            "MB of a further worker (a2c.py: environment)",
        ),
        rows,
    )


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if not args.table:
        measure(args)
    report(Path(args.table or args.out))
