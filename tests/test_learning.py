"""It learns, by the flags that README gives; and with one line wrong it does not."""

import re
import shlex

import numpy as np
import pytest
from conftest import ROOT, VALUE_METHODS, train

FAULTS = [  # a script, a piece of its text, and what is wrong there
    ("onestep_q_async", "next_values[-1] *= not terminal", "pass"),  # an end of the episode that is none
    ("sarsa_async", "next_values[-1] *= not terminal", "pass"),
    ("nstep_q_async", "0.0 if terminal else target", "target"),
    ("onestep_q_async", "shared.target.copy_(shared.params)", "pass"),  # a frozen target network
    *((name, "policy_loss = -(logprobs", "policy_loss = (logprobs") for name in ("a3c", "a2c")),  # a wrong sign
]


@pytest.mark.parametrize("seed", [1, 2])
def test_from_pixels(script, tmp_path, seed):
    """Action 2 pays 1 in each of an episode's 10 steps: 9 of them are a policy that takes it with 0.9."""
    env_id, flags = "toy_envs:Colour-v0", {}
    if script.__name__ in VALUE_METHODS:
        flags = dict(exploration_steps=2000, target_interval=500)
    run_dir = train(script, tmp_path, env_id=env_id, total_timesteps=4000, seed=seed, **flags)
    returns = script.main(script.Args(env_id=env_id, evaluate=str(run_dir), eval_episodes=20))
    assert np.mean(returns) > 9


def readme_flags(name: str) -> list[str]:
    """The flags of README's command for CartPole."""
    (command,) = re.findall(rf"^ +python {name}\.py (--env-id CartPole-v1 .*)$", (ROOT / "README.md").read_text(), re.M)
    return shlex.split(command)


def cartpole(script, launch, folder, seeds, *more_flags):
    """Trains by README's flags, on all seeds at once; returns the mean return of 100 episodes for each."""
    flags = [*readme_flags(script.__name__), *more_flags]
    runs = [launch(script, *flags, "--seed", seed, "--log-dir", folder / str(seed)) for seed in seeds]
    assert [run.ends(900)[0] for run in runs] == [0] * len(runs)
    run_dirs = [next((folder / str(seed)).iterdir()) for seed in seeds]
    evaluations = [script.Args(env_id="CartPole-v1", evaluate=str(run_dir), eval_episodes=100) for run_dir in run_dirs]
    return [np.mean(script.main(evaluation)) for evaluation in evaluations]


def test_cartpole(script, launch, tmp_path):
    # The actor-critics repeat bit for bit by README's flags; the workers of a value method race.
    threshold = 150 if script.__name__ in VALUE_METHODS else 475
    seeds = (1, 2, 3) if script.__name__ == "a3c" else (1, 2)
    assert min(cartpole(script, launch, tmp_path / "logs", seeds)) >= threshold


@pytest.mark.parametrize("script, right, wrong", FAULTS, indirect=["script"])
def test_a_broken_script_does_not_learn_cartpole(script, launch, tmp_path, monkeypatch, right, wrong):
    source = script.SCRIPT.read_text()
    assert source.count(right) == 1
    (tmp_path / script.SCRIPT.name).write_text(source.replace(right, wrong))
    monkeypatch.setattr(script, "__file__", str(tmp_path / script.SCRIPT.name))
    assert max(cartpole(script, launch, tmp_path / "logs", [1], "--total-timesteps", 100_000)) < 100
