"""Tries settings of a2c.py on one core, and logs what tells early whether a network learns.

    python benchmark/studies/screening.py --name pong_eps1e-5 --env-id PongNoFrameskip-v4 --rms-eps 1e-5

It computes what a2c.py does, with all environments in one process, so that two runs fill two cores.
Every 50,000 steps it writes a row to benchmark/results/screening/NAME.csv:

    ev            share of the returns' variance that V explains
    units_conv    share of the second convolution's channels that are on for some inputs, off for others
    units_hidden  the same for the 256 hidden units
    spread        mean KL divergence of π(·|s) from its mean over states: 0 if the policy is blind
    rms_g         root of the mean of g, to compare with √ε
"""

import csv
import random
import sys
from collections import deque
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT), str(ROOT / "benchmark")]
from curve import PACKAGES, machine, version

import a2c

RESULTS = ROOT / "benchmark" / "results" / "screening"
COLUMNS = "step,return,episodes,ev,units_conv,units_hidden,spread,entropy,grad_norm,rms_g"


@dataclass
class Args:
    name: str
    """name of the CSV"""
    env_id: str = "PongNoFrameskip-v4"
    num_workers: int = 16
    total_timesteps: int = 10_000_000
    """length of the learning rate's schedule"""
    stop_after: int = 1_500_000
    """agent steps to make"""
    seed: int = 1
    num_steps: int = 5
    gamma: float = 0.99
    learning_rate: float = 7e-4
    rms_alpha: float = 0.99
    rms_eps: float = 1e-5
    g_start: float = 1.0
    """initial g"""
    max_grad_norm: float = 40.0
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    init: Literal["orthogonal", "paper"] = "orthogonal"


def play(envs: list, network: a2c.Network, obs: np.ndarray, args: Args) -> tuple:
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
    x = states.permute(0, 3, 1, 2).float() / 255
    convs = network.convs(x)
    hidden = network.hidden(convs.permute(0, 2, 3, 1).flatten(1))
    shares = []
    for on in ((convs > 0).float().mean((0, 2, 3)), (hidden > 0).float().mean(0)):
        shares.append(((on > 0) & (on < 1)).float().mean().item())
    logprobs = logits.log_softmax(1)
    mean = logprobs.exp().mean(0)
    spread = (logprobs.exp() * (logprobs - mean.log())).sum(1).mean().item()
    return *shares, spread


def main(args: Args) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = (RESULTS / f"{args.name}.csv").open("w")
    print(f"# machine: {machine()}", file=file)
    print("# versions: " + ", ".join(f"{p} {version(p)}" for p in PACKAGES), file=file)
    print(f"# written by: python benchmark/studies/screening.py; {asdict(args)}", file=file)
    writer = csv.writer(file)
    writer.writerow(COLUMNS.split(","))

    torch.manual_seed(args.seed)
    random.seed(args.seed)
    envs = [a2c.make_env(args.env_id) for _ in range(args.num_workers)]
    network = a2c.make_network(envs[0], args.init)
    shared = a2c.Shared(network, 1)
    for g in shared.square_avg.values():
        g.fill_(args.g_start)
    seeds = np.random.SeedSequence([args.seed, 0]).generate_state(args.num_workers).tolist()
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    last_returns, window, episodes_ended, step, next_row = deque(maxlen=100), [], 0, 0, 50_000

    while step < args.stop_after:
        network.load_state_dict(shared.params)
        segments, actions, rewards, terminal, over, episodes = play(envs, network, obs, args)
        last_returns.extend(episodes)
        episodes_ended += len(episodes)
        flat = [state for segment in segments for state in segment]
        states, chosen = torch.from_numpy(np.stack([*flat, *obs])), torch.tensor([*chain(*actions)])
        t = len(chosen)
        logits, values = network(states)
        bootstraps = values[t:].tolist()
        returns = []
        for rank in range(args.num_workers):
            bootstrap = 0.0 if terminal[rank] else bootstraps[rank]
            returns += a2c.n_step_returns(rewards[rank], bootstrap, args.gamma)
        returns = torch.tensor(returns)
        loss, stats = a2c.actor_critic_loss(
            logits[:t], values[:t], chosen, returns, args.ent_coef, args.vf_coef
        )
        grads = torch.autograd.grad(loss, list(network.parameters()))
        grads, norm = a2c.clip_grads(grads, args.max_grad_norm)
        learning_rate = args.learning_rate * (1 - step / args.total_timesteps)
        shared.rmsprop_update(grads, learning_rate, args.rms_alpha, args.rms_eps)
        step += t
        for rank in np.flatnonzero(over):
            obs[rank], _ = envs[rank].reset()

        window.append((returns, values[:t].detach(), stats["losses/entropy"], norm))
        if step >= next_row:
            next_row += 50_000
            R, V = torch.cat([row[0] for row in window]), torch.cat([row[1] for row in window])
            g = torch.cat([g.flatten() for g in shared.square_avg.values()])
            row = [1 - ((R - V).var() / R.var()).item()]
            row += [*diagnostics(network, states[:t], logits[:t].detach())]
            row += [np.mean([row[2] for row in window]), np.mean([row[3] for row in window])]
            row += [g.mean().sqrt().item()]
            mean = f"{np.mean(last_returns):.4g}" if last_returns else ""
            writer.writerow([step, mean, episodes_ended, *(f"{value:.4g}" for value in row)])
            file.flush()
            window = []


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
