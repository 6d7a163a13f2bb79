"""Says where the time of an agent step goes: microseconds per agent step on Breakout, by phase, for each script.

    python benchmark/phases.py >benchmark/results/phases.csv

Phases are processor time of all processes, but for "wait", which is how long the learner of a2c.py waits for its
workers. "rest" is what no phase covers: snapshots, losses, counters, resets, and what goes through pipes. "processor"
is the processor time of all that, and "step" what a step takes. Prints the medians of --rounds rounds. Run it on an
otherwise idle Linux machine.
"""

import contextlib
import importlib
import io
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import gymnasium as gym
import torch
import tyro
from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
RUNS = [(name, 1) for name in ("onestep_q_async", "sarsa_async", "nstep_q_async", "a3c")]  # script, workers
RUNS += [("a3c", 2), ("a3c", 16), ("a2c", 16)]
PHASES = "environment", "act", "forward", "backward", "norm", "rmsprop", "wait"
WARM_UP = 1000  # agent steps


@dataclass
class Args:
    rounds: int = 3
    """runs of each script"""
    steps: int = 5000
    """agent steps of a run that are measured"""


class Clock:
    """Seconds in each phase, of each process; a call within another counts for the outer one."""

    def __init__(self):
        self.seconds = torch.zeros(17, len(PHASES), dtype=torch.float64).share_memory_()
        self.processor = torch.zeros(17, dtype=torch.float64).share_memory_()  # seconds since the process began
        self.total = torch.zeros(3, dtype=torch.float64).share_memory_()  # agent steps, seconds, processor seconds
        self.row, self.running, self.began = 0, False, None

    def timed(self, phase: str, function):
        def call(*args, **kwargs):
            if self.running:
                return function(*args, **kwargs)
            now = time.perf_counter if phase == "wait" else time.process_time
            self.running, start = True, now()
            result = function(*args, **kwargs)
            self.seconds[self.row, PHASES.index(phase)] += now() - start
            self.processor[self.row] = time.process_time()
            self.running = False
            return result

        return call

    def mark(self, shared) -> None:
        """After an update: begins when the run is warm, and notes how far it is."""
        now = torch.tensor([shared.steps.sum(), time.perf_counter(), self.processor.sum()], dtype=torch.float64)
        if self.began is None and now[0] >= WARM_UP:
            self.began = now
            self.seconds.zero_()
        if self.began is not None:
            self.total.copy_(now - self.began)


def measure(name: str, workers: int, steps: int) -> dict[str, float]:
    """Microseconds per agent step."""
    script, clock = importlib.import_module(name), Clock()
    make_env, worker, update = script.make_env, script.worker, script.Shared.rmsprop_update

    class Timed(gym.Wrapper):
        step = clock.timed("environment", lambda self, action: self.env.step(action))

    def timed_worker(rank, *words):
        clock.row = rank
        if rank == 16:  # a2c.py's learner
            Connection.recv = clock.timed("wait", Connection.recv)
        worker(rank, *words)

    def marked_update(shared, *words):
        clock.timed("rmsprop", update)(shared, *words)
        if clock.row in (0, 16):
            clock.mark(shared)

    flags = {"exploration_steps": 1} if hasattr(script.Args, "exploration_steps") else {}
    flags |= {"num_workers": workers, "total_timesteps": WARM_UP + steps}
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(io.StringIO()):
        for owner, attribute, replacement in (
            (script, "make_env", lambda *words: Timed(make_env(*words))),
            (script, "worker", timed_worker),
            (script.Shared, "rmsprop_update", marked_update),
            (script.Network, "act", clock.timed("act", script.Network.act)),
            (script.Network, "forward", clock.timed("forward", script.Network.forward)),
            (torch.Tensor, "backward", clock.timed("backward", torch.Tensor.backward)),
            (torch.Tensor, "dot", clock.timed("norm", torch.Tensor.dot)),
        ):
            stack.enter_context(patch.object(owner, attribute, replacement))
        script.main(script.Args(log_dir=stack.enter_context(tempfile.TemporaryDirectory()), **flags))
    made, seconds, processor = clock.total.tolist()
    phases = dict(zip(PHASES, (clock.seconds.sum(0) / made * 1e6).tolist(), strict=True))
    rest = processor / made * 1e6 - sum(phases.values()) + phases["wait"]
    return phases | {"rest": rest, "processor": processor / made * 1e6, "step": seconds / made * 1e6}


def main(args: Args) -> None:
    sys.path.insert(0, str(ROOT))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    runs = {run: [] for run in RUNS}
    for _ in range(args.rounds):
        for run in RUNS:
            runs[run].append(measure(*run, args.steps))
    print(f"# machine: {machine()}")
    print(f"# versions: python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {head}")
    print(f"# command: python benchmark/phases.py --rounds {args.rounds} --steps {args.steps}; Breakout, seed 1")
    columns = *PHASES, "rest", "processor", "step"
    print("script,workers," + ",".join(columns))
    for (name, workers), results in runs.items():
        medians = [statistics.median(result[column] for result in results) for column in columns]
        print(f"{name},{workers}," + ",".join(f"{value:.0f}" for value in medians))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
