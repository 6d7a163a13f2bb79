"""Compares two ways to step 16 games of Breakout: a2c.py's own, and ale-py's AtariVectorEnv.

    python benchmark/studies/vector_env.py

Both take random actions and learn nothing. a2c.py deals its environments, whose preprocessing is in
Python, over one process per core. AtariVectorEnv steps all in C++ threads, one per core. They take
turns of one second, as in benchmark/speed.py. Writes benchmark/results/vector_env.csv and prints
medians. It needs an otherwise idle Linux machine, and takes a minute.
"""

import csv
import sys
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmark"))
from provenance import header
from speed import spread, take_turns

ROUNDS = 15
OWN = """
import random, sys, time
sys.path.insert(0, {root!r})
import a2c
if __name__ == "__main__":
    args = a2c.Args()
    shared = a2c.Shared(a2c.torch.nn.Linear(1, 1), args.num_workers)
    seeds = [*range(args.num_workers)]
    envs = a2c.start_workers(args, seeds, a2c.make_buffers(args), shared.stop)
    envs.receive()
    taken = 0
    while True:
        actions = {{}}
        for rank in range(args.num_workers):
            actions[rank] = a2c.Buffers.RESET if envs.over[rank] else random.randrange(4)
            taken += not envs.over[rank]
        envs.step(actions)
        print(taken, time.monotonic(), flush=True)
"""
VECTOR = """
import os, time
import numpy as np
from ale_py.vector_env import AtariVectorEnv
cores = len(os.sched_getaffinity(0))
env = AtariVectorEnv("breakout", 16, num_threads=cores, noop_max=30, use_fire_reset=False,
                     reward_clipping=False, repeat_action_probability=0.0)
env.reset(seed=1)
taken = 0
while True:
    _, _, terminations, truncations, _ = env.step(np.random.randint(4, size=16))
    taken += 16
    print(taken, time.monotonic(), flush=True)
"""


def main() -> None:
    commands = {
        "a2c.py's environments": [sys.executable, "-c", OWN.format(root=str(ROOT))],
        "AtariVectorEnv": [sys.executable, "-c", VECTOR],
    }
    rates = take_turns(commands, ROUNDS, seconds=1.0)
    with (ROOT / "benchmark" / "results" / "vector_env.csv").open("w", newline="") as file:
        file.write(header("python benchmark/studies/vector_env.py"))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("what", "round", "steps_per_second"))
        for what, of_what in rates.items():
            writer.writerows((what, turn, f"{rate:.1f}") for turn, rate in enumerate(of_what))
            print(what, spread(of_what, 0))
    pairs = zip(rates["AtariVectorEnv"], rates["a2c.py's environments"], strict=True)
    print("ratio in a round", spread([one / other for one, other in pairs], 2))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
