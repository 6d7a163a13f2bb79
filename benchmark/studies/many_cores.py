"""Measures the scripts on a machine with many cores and a GPU, Stable-Baselines3's A2C beside them.

    python benchmark/studies/many_cores.py --peers-python PATH

Every program plays 16 games of Breakout, a2c.py also 64, on the CPU and on the GPU. Its coordinator
is also tried with fewer threads than cores. They take turns of one second, as in benchmark/speed.py,
which says what PATH is. Writes benchmark/results/many_cores.csv and prints a table of medians, and
of ratios to a2c.py within a round. It needs an otherwise idle Linux machine with an NVIDIA GPU, and
takes three minutes.
"""

import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from variants import command

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmark"))
from provenance import header, machine, output
from speed import BENCHMARK, PEERS, VERSIONS, play, spread, take_turns, train

PEER_VERSIONS = VERSIONS.replace('"pfrl", ', "")
THREADS = "torch.set_num_threads(min(args.num_workers, num_cores()))"


@dataclass
class Args:
    out: Path = ROOT / "benchmark" / "results" / "many_cores.csv"
    """CSV to write"""
    peers_python: str = ""
    """interpreter of the environment with the peers; without it they are left out"""
    rounds: int = 7
    """turns of each, two at least"""


def programs(args: Args, folder: Path) -> dict[tuple[str, int], list[str]]:
    """The commands to compare, by name and number of workers."""
    commands = {("environment alone", 16): play(16)}
    for script in "nstep_q_async", "a3c", "a2c":
        commands[f"{script}.py", 16] = train(script, 16)
    for threads in 1, 4, 8:
        name = f"a2c.py, threads: {threads}"
        change = {THREADS: f"torch.set_num_threads({threads})"}
        commands[name, 16] = command("a2c", 16, change, folder / str(threads))
    commands["a2c.py", 64] = train("a2c", 64)
    if torch.cuda.is_available():
        for workers in 16, 64:
            commands["a2c.py --device cuda", workers] = train("a2c", workers, device="cuda")
    for (name, workers), (file, *words) in PEERS.items():
        if args.peers_python and workers == 16:
            script = str(BENCHMARK / "peers" / file)
            commands[name, workers] = [args.peers_python, script, *words]
    return commands


def main(args: Args) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    with args.out.open("w", newline="") as file, tempfile.TemporaryDirectory() as folder:
        line = f"python benchmark/studies/many_cores.py --rounds {args.rounds} --peers-python PATH"
        peers = output(args.peers_python, "-c", PEER_VERSIONS) if args.peers_python else "not timed"
        file.write(header(line, machine=f"{machine()}, {gpu}", peers=peers))
        rates = take_turns(programs(args, Path(folder)), args.rounds, seconds=1.0)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("what", "workers", "round", "steps_per_second"))
        for key, of_key in rates.items():
            for turn, rate in enumerate(of_key):
                writer.writerow((*key, turn, f"{rate:.1f}"))

    print("| | workers | steps per second | to a2c.py with 16 workers |\n|---|---|---|---|")
    for (name, workers), of_key in rates.items():
        pairs = zip(of_key, rates["a2c.py", 16], strict=True)
        ratio = spread([one / other for one, other in pairs], 2)
        print(f"| {name} | {workers} | {spread(of_key, 0)} | {ratio} |")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
