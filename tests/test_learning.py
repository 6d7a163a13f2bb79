"""It learns, by the flags that README gives; and with one line wrong it does not."""

import itertools
import re
import shlex

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, VALUE_METHODS, train

# One line of a script, and what would be wrong.
BROKEN = {
    "the sign of a target": (
        "r + args.gamma * value for",
        "r - args.gamma * value for",
        ["onestep_q_async", "sarsa_async"],
    ),
    "an end that is none": ("0.0 if terminal else target", "target", ["nstep_q_async"]),
    "the sign of a policy": ("policy_loss = -(logprobs", "policy_loss = (logprobs", ["a3c", "a2c"]),
    "a frozen target network": ("shared.target.copy_(shared.params)", "pass", VALUE_METHODS),
}


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


def cartpole(script, launch, folder, seeds):
    """Trains on each seed; returns the mean returns of 100 episodes."""
    flags, means = readme_flags(script.__name__), []
    for seed in seeds:
        run = launch(script, *flags, "--seed", seed, "--log-dir", folder / str(seed))
        assert run.ends(900)[0] == 0
        (run_dir,) = (folder / str(seed)).iterdir()
        args = script.Args(env_id="CartPole-v1", evaluate=str(run_dir), eval_episodes=100)
        means.append(np.mean(script.main(args)))
    return means


@pytest.mark.parametrize("script, seed", [("a3c", 3), *itertools.product(SCRIPTS, (1, 2))], indirect=["script"])
def test_cartpole(script, launch, tmp_path, seed):
    # One worker, and a2c, repeat bit for bit; several workers of a value method end between 400 and 500.
    (mean,) = cartpole(script, launch, tmp_path / "logs", [seed])
    assert mean >= (300 if script.__name__ in VALUE_METHODS else 475)


@pytest.mark.parametrize(
    "script, fault", [(name, fault) for fault, (_, _, names) in BROKEN.items() for name in names], indirect=["script"]
)
def test_a_broken_script_does_not_learn_cartpole(script, launch, tmp_path, monkeypatch, fault):
    right, wrong, _ = BROKEN[fault]
    source = script.SCRIPT.read_text()
    assert source.count(right) == 1
    (tmp_path / script.SCRIPT.name).write_text(source.replace(right, wrong))
    monkeypatch.setattr(script, "__file__", str(tmp_path / script.SCRIPT.name))
    assert max(cartpole(script, launch, tmp_path / "logs", [1])) < 200
