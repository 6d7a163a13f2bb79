"""Measures agent steps per second on Breakout: the five files, their peers, and the environment alone, the limit.

    python benchmark/speed.py --peers-python PATH

Launches every configuration once in each of --repeats rounds, so that a change of the machine's speed meets them all; a
rate is taken over --seconds after a warm-up. Also measures the seconds from launch until each of 16 workers has made an
update, and the memory of a further worker. Writes a CSV, and prints tables of medians, ranges and ratios; --table FILE
prints those of a CSV that is there. Run it on an otherwise idle Linux machine; it takes about half an hour.

The peers need a virtual environment of their own (see benchmark/requirements.txt), whose interpreter is PATH. The value
methods are measured with the last ε of each worker: at the start of a run they mostly draw random actions, for which
no network is asked.
"""

import csv
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import processes
import tyro
from curve import PACKAGES, machine, version

BENCHMARK = Path(__file__).resolve().parent
ROOT = BENCHMARK.parent
SCRIPTS = "onestep_q_async", "sarsa_async", "nstep_q_async", "a3c", "a2c"
WORKERS = 1, 2, 4, 8, 16
PEERS = {
    ("PFRL A3C", 1): ("pfrl_a3c.py", "1"),
    ("PFRL A3C", 2): ("pfrl_a3c.py", "2"),
    ("SB3 A2C, DummyVecEnv", 16): ("sb3_a2c.py", "16", "dummy"),
    ("SB3 A2C, SubprocVecEnv", 16): ("sb3_a2c.py", "16", "subproc"),
}
VERSIONS = """
from importlib.metadata import version
print(", ".join(f"{p} {version(p)}" for p in ("torch", "gymnasium", "ale-py", "pfrl", "stable-baselines3")))
"""
COLUMNS = "what", "workers", "repeat", "steps_per_second", "seconds_until_all_updated", "mb_per_further_worker"
# These print what the peers do: lines of agent steps and seconds of the monotonic clock.
SCRIPT = """
import sys, threading, time
sys.path.insert(0, {root!r})
import {script} as script
share = script.Shared.__init__
def watched(self, *args):
    share(self, *args)
    def watch():
        while True:
            print(int(self.steps.sum()), time.monotonic(), flush=True)
            time.sleep(0.1)
    threading.Thread(target=watch, daemon=True).start()
script.Shared.__init__ = watched
flags = {{"exploration_steps": 1}} if hasattr(script.Args, "exploration_steps") else {{}}
script.main(script.Args(num_workers={workers}, log_dir="runs", total_timesteps=10**9, **flags))
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
for rank in range({workers}):
    multiprocessing.get_context("fork").Process(target=play, args=(steps, rank), daemon=True).start()
while True:
    print(sum(steps), time.monotonic(), flush=True)
    time.sleep(0.1)
"""


@dataclass
class Args:
    out: Path = Path("benchmark/results/speed.csv")
    """CSV to write"""
    peers_python: str = ""
    """interpreter of the environment with the peers; without it they are left out"""
    seconds: float = 6.0
    """length of a measurement"""
    warm_up: float = 2.0
    """seconds before it, from the first thousand steps on"""
    repeats: int = 3
    """rounds"""
    table: str = ""
    """CSV to print the tables of, instead of measuring"""


def rate(args: Args, command: list[str]) -> float:
    """Agent steps per second after the warm-up of a command that prints steps and seconds."""
    warm = first = None
    with tempfile.TemporaryDirectory() as folder:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        process = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)
        for line in process.stdout:
            words = line.split()
            if len(words) != 2 or not words[0].isdigit():  # what else a package prints
                continue
            steps, now = int(words[0]), float(words[1])
            warm = warm or (now if steps >= 1000 else None)
            first = first or ((steps, now) if warm and now >= warm + args.warm_up else None)
            if first and now >= first[1] + args.seconds:
                break
        else:
            raise RuntimeError(f"ended early: {command}")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return (steps - first[0]) / (now - first[1])


def configurations(args: Args) -> dict[tuple[str, int], list[str]]:
    """A command for each name and number of workers; what is to be compared stands side by side."""
    commands = {}
    for n in WORKERS:
        commands["environment alone", n] = [sys.executable, "-c", ENVIRONMENT.format(root=str(ROOT), workers=n)]
        for script in SCRIPTS:
            text = SCRIPT.format(root=str(ROOT), script=script, workers=n)
            commands[f"{script}.py", n] = [sys.executable, "-c", text]
        for peer, (file, *words) in PEERS.items():
            if args.peers_python and peer[1] == n:
                commands[peer] = [args.peers_python, str(BENCHMARK / "peers" / file), *words]
    return commands


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def measure(args: Args) -> None:
    own = f"python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    header = {
        "machine": f"{machine()}; load before: {os.getloadavg()[0]:.1f}",
        "versions": own,
        "peers": output(args.peers_python, "-c", VERSIONS) if args.peers_python else "not timed",
        "commit": output("git", "rev-parse", "HEAD"),
        "command": f"python benchmark/speed.py --seconds {args.seconds:g} --warm-up {args.warm_up:g} "
        f"--repeats {args.repeats} --peers-python PATH; Breakout, the scripts with seed 1",
    }
    with args.out.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in header.items())
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for repeat in range(args.repeats):
            for (name, n), command in configurations(args).items():
                writer.writerow((name, n, repeat, f"{rate(args, command):.1f}", "", ""))
                file.flush()
            for script in SCRIPTS:
                run = processes.Args(out=args.out, script=script)
                seconds, memory = processes.launch(run, "fork", 16)
                further = (memory - processes.launch(run, "fork", 1)[1]) / 15
                writer.writerow((f"{script}.py", 16, repeat, "", f"{seconds:.2f}", f"{further:.1f}"))
                file.flush()


def table(corner: str, columns: tuple, rows: dict[str, list]) -> None:
    print(f"| {corner} | {' | '.join(map(str, columns))} |\n|{'---|' * (len(columns) + 1)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print()


def report(path: Path) -> None:
    """Prints the medians, ranges and ratios of a CSV, as Markdown."""
    values = {column: {} for column in COLUMNS[3:]}
    with path.open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            for column in values:
                if row[column]:
                    values[column].setdefault((row["what"], int(row["workers"])), []).append(float(row[column]))
    rates, seconds, memory = values.values()
    median = {key: statistics.median(of_key) for key, of_key in rates.items()}
    names = list(dict.fromkeys(name for name, _ in rates))

    spread = {key: f"{median[key]:.0f} ({min(of_key):.0f} to {max(of_key):.0f})" for key, of_key in rates.items()}
    print("Agent steps per second, median (lowest to highest), by number of workers:\n")
    table("", WORKERS, {name: [spread.get((name, n), "") for n in WORKERS] for name in names})

    share = {key: f"{median[key] / median['environment alone', key[1]]:.2f}" for key in median}
    print("Share of the environment alone, with as many processes:\n")
    table("", WORKERS, {name: [share.get((name, n), "") for n in WORKERS] for name in names[1:]})

    print("Ratios of the medians:\n")
    ratios = {f"a3c.py to PFRL's A3C, workers: {n}": [("a3c.py", n), ("PFRL A3C", n)] for n in (1, 2)}
    ratios |= {f"a2c.py to {name}, workers: {n}": [("a2c.py", n), (name, n)] for name, n in PEERS if "A2C" in name}
    ratios |= {f"{s}.py to a3c.py, workers: {n}": [(f"{s}.py", n), ("a3c.py", n)] for s in SCRIPTS[:3] for n in (1, 16)}
    ratios |= {f"{s}.py, 16 workers to 2": [(f"{s}.py", 16), (f"{s}.py", 2)] for s in SCRIPTS}
    known = {name: pair for name, pair in ratios.items() if all(key in median for key in pair)}
    table("", ("ratio",), {name: [f"{median[a] / median[b]:.2f}"] for name, (a, b) in known.items()})

    print("Launch and memory with 16 workers, medians:\n")
    rows = {key[0]: [f"{statistics.median(x[key]):.1f}" for x in (seconds, memory)] for key in seconds}
    table("", ("seconds until all workers have made an update", "MB of a further worker"), rows)


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if not args.table:
        measure(args)
    report(Path(args.table or args.out))
