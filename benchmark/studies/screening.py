"""Tries settings of a2c.py, one change at a time, and logs what tells early whether it learns.

    python benchmark/studies/screening.py                               # all runs, two at a time
    python benchmark/studies/screening.py --run eps_1e-3 --game Pong    # one of them

A run computes what a2c.py does, with other random numbers and with all environments in one process,
so that it fills one core. It stops after 1.5 million agent steps of a schedule of 10 million, which
takes 25 to 45 minutes, and then writes benchmark/results/screening/GAME_RUN_SEED.csv, with a row for
every 50,000 steps:

    ev            share of the returns' variance that V explains
    units_conv    share of the second convolution's channels that are on at some positions of some
                  inputs, and off at others
    units_hidden  the same for the 256 hidden units
    spread        mean KL divergence of π(·|s) from its mean over states: 0 if the policy is blind
    rms_g         root of the mean of g, to compare with √ε
"""

import csv
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT), str(ROOT / "benchmark")]
from provenance import RESULTS, header

import a2c

ROW = 50_000  # agent steps for each row of a file
COLUMNS = "step,return,episodes,ev,units_conv,units_hidden,spread,entropy,grad_norm,rms_g"
RUNS = {  # what differs from the defaults for images; g_start is where g starts
    "defaults": {},
    "init_paper": {"init": "paper"},
    "g_0": {"g_start": 0.0},
    "eps_1e-1": {"rms_eps": 1e-1},
    "paper": {"init": "paper", "g_start": 0.0, "rms_eps": 1e-1},  # all three changes undone
    "init_paper_g_0": {"init": "paper", "g_start": 0.0},
    "eps_1e-2": {"rms_eps": 1e-2},
    "eps_1e-3": {"rms_eps": 1e-3},
    "eps_1e-4": {"rms_eps": 1e-4},
    "eta_2.1e-3": {"learning_rate": 2.1e-3},
    "eta_2.3e-4": {"learning_rate": 2.3e-4},
    "t_max_20": {"num_steps": 20},
}


@dataclass
class Args:
    run: str = ""
    """key of RUNS; without it, all runs of both games that have no file yet"""
    game: str = "Breakout"
    seed: int = 1
    stop_after: int = 1_500_000
    """agent steps to take"""
    jobs: int = 2
    """runs at a time, without --run"""


def play(envs: list, network: a2c.Network, obs: np.ndarray, args: a2c.Args) -> tuple:
    """A segment of every environment; obs is updated in place."""
    states, actions, rewards = ([[] for _ in envs] for _ in range(3))
    terminal, over, episodes = np.zeros(len(envs), bool), np.zeros(len(envs), bool), []
    acting = [*range(len(envs))]
    while acting:
        batch = obs[acting]
        for i, rank in enumerate(acting):
            states[rank].append(batch[i])
        chosen = a2c.act(network, torch.from_numpy(batch))
        for rank, action in zip(acting, chosen, strict=True):
            obs[rank], reward, terminated, truncated, info = envs[rank].step(action)
            actions[rank].append(action)
            rewards[rank].append(float(reward))
            terminal[rank] = terminated or info.get("life_lost", False)
            over[rank] = terminated or truncated
            if over[rank]:
                episodes.append(info["episode"]["r"])
        acting = [
            rank
            for rank in acting
            if len(actions[rank]) < args.num_steps and not (terminal[rank] or over[rank])
        ]
    return states, actions, rewards, terminal, over, episodes


@torch.inference_mode()
def diagnostics(network: a2c.ImageNetwork, states: torch.Tensor, logits: torch.Tensor) -> tuple:
    """units_conv, units_hidden and spread of the last batch."""
    outputs: list[torch.Tensor] = []  # of both convolutions and the hidden layer
    hooks = [
        module.register_forward_hook(lambda module, args, result: outputs.append(result))
        for module in network.modules()
        if isinstance(module, torch.nn.ReLU)
    ]
    network(states)
    for hook in hooks:
        hook.remove()

    _, convs, hidden = outputs
    shares = []
    for on in ((convs > 0).float().mean((0, 2, 3)), (hidden > 0).float().mean(0)):
        shares.append(((on > 0) & (on < 1)).float().mean().item())
    logprobs = logits.log_softmax(1)
    mean = logprobs.exp().mean(0)
    spread = (logprobs.exp() * (logprobs - mean.log())).sum(1).mean().item()
    return *shares, spread


def summary(window: list) -> tuple[float, float, float]:
    """ev, and the means of entropy and of the gradient's norm."""
    returns, values, entropies, norms = zip(*window, strict=True)
    all_returns = torch.cat(returns)
    errors = all_returns - torch.cat(values)
    ev = 1 - (errors.var() / all_returns.var()).item()
    return ev, np.mean(entropies), np.mean(norms)


def returns_of(rewards: list, terminal: np.ndarray, last_values: list, gamma: float) -> list:
    """The n-step returns of all segments, one after the other."""
    returns = []
    for rank, of_segment in enumerate(rewards):
        bootstrap = 0.0 if terminal[rank] else last_values[rank]
        returns += a2c.n_step_returns(of_segment, bootstrap, gamma)
    return returns


def screen(game: str, run: str, seed: int, stop_after: int) -> None:
    """Trains with the settings of one run, and writes its file."""
    changes = {"g_start": 1.0, **RUNS[run]}
    g_start = changes.pop("g_start")
    args = a2c.Args(env_id=f"{game}NoFrameskip-v4", seed=seed, **changes)
    args = a2c.choose_defaults(args, images=True)
    flags = f"--run {run} --game {game} --seed {seed} --stop-after {stop_after}"
    command = f"python benchmark/studies/screening.py {flags}"
    head = header(command, settings=vars(args) | {"g_start": g_start})

    torch.manual_seed(args.seed)
    a2c.action_rng.seed(args.seed)
    envs = [a2c.make_env(args.env_id) for _ in range(args.num_workers)]
    network = a2c.make_network(envs[0], args.init)
    shared = a2c.Shared(network, 1)
    for g in shared.square_avg.values():
        g.fill_(g_start)
    seeds = np.random.SeedSequence([args.seed, 0]).generate_state(args.num_workers).tolist()
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])

    last_returns, episodes_ended = deque(maxlen=100), 0
    step, next_row = 0, ROW
    window = []  # of the updates since the last row: returns, values, entropy, norm
    rows = []
    while step < stop_after:
        # Snapshot and act
        network.load_state_dict(shared.theta)
        segments, actions, rewards, terminal, over, episodes = play(envs, network, obs, args)
        last_returns.extend(episodes)
        episodes_ended += len(episodes)

        # Learn
        states = torch.from_numpy(np.stack([*chain(*segments), *obs]))
        chosen = torch.tensor([*chain(*actions)])
        t = len(chosen)
        logits, values = network(states)
        returns = torch.tensor(returns_of(rewards, terminal, values[t:].tolist(), args.gamma))
        loss, stats = a2c.actor_critic_loss(
            logits[:t], values[:t], chosen, returns, args.ent_coef, args.vf_coef
        )
        grads = torch.autograd.grad(loss, list(network.parameters()))
        grads, norm = a2c.clip_grads(grads, args.max_grad_norm)

        # Update
        learning_rate = args.learning_rate * (1 - step / args.total_timesteps)
        shared.rmsprop_update(grads, learning_rate, args.rms_alpha, args.rms_eps)
        step += t
        for rank in np.flatnonzero(over):
            obs[rank], _ = envs[rank].reset()

        # Log
        window.append((returns, values[:t].detach(), stats["losses/entropy"], norm))
        if step >= next_row:
            mean = f"{np.mean(last_returns):.4g}" if last_returns else ""
            ev, entropy, grad_norm = summary(window)
            shares_and_spread = diagnostics(network, states[:t], logits[:t].detach())
            g = torch.cat([g.flatten() for g in shared.square_avg.values()])
            signs = [ev, *shares_and_spread, entropy, grad_norm, g.mean().sqrt().item()]
            rows.append([next_row, mean, episodes_ended, *(f"{sign:.4g}" for sign in signs)])
            print(game, run, seed, *rows[-1], flush=True)
            next_row += ROW
            window = []

    with path(game, run, seed).open("w") as file:
        file.write(head)
        csv.writer(file, lineterminator="\n").writerows([COLUMNS.split(","), *rows])


def path(game: str, run: str, seed: int) -> Path:
    return RESULTS / "screening" / f"{game}_{run}_{seed}.csv"


def main(args: Args) -> None:
    if args.run:
        screen(args.game, args.run, args.seed, args.stop_after)
        return

    flags = ["--seed", args.seed, "--stop-after", args.stop_after]
    commands = [
        [sys.executable, __file__, "--run", run, "--game", game, *flags]
        for run in RUNS
        for game in ("Breakout", "Pong")
        if not path(game, run, args.seed).exists()
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        for ended in pool.map(lambda words: subprocess.run([*map(str, words)]), commands):
            ended.check_returncode()


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
