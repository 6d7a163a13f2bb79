"""It learns, from the default flags; and a script with its sign turned round does not."""

import numpy as np
import pytest
from conftest import train

BROKEN = {"a3c": ("policy_loss = -(logprobs", "policy_loss = (logprobs")}


@pytest.mark.parametrize("seed", [1, 2])
def test_from_pixels(script, tmp_path, seed):
    """Action 2 pays 1 in each of an episode's 10 steps: 9 of them are a policy that takes it with 0.9."""
    env_id = "toy_envs:Colour-v0"
    run_dir = train(script, tmp_path, env_id=env_id, total_timesteps=4000, seed=seed)
    returns = script.main(script.Args(env_id=env_id, evaluate=str(run_dir), eval_episodes=20))
    assert np.mean(returns) > 9


def cartpole(script, launch, seed, steps):
    """Mean return of 100 episodes after training with the default flags, on two cores."""
    flags = ["--env-id", "CartPole-v1", "--num-workers", 2, "--total-timesteps", steps, "--seed", seed]
    run = launch(script, *flags)
    assert run.ends(600)[0] == 0
    returns = script.main(script.Args(env_id="CartPole-v1", evaluate=str(run.run_dir), eval_episodes=100))
    return np.mean(returns)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cartpole(script, launch, seed):
    assert cartpole(script, launch, seed, 300_000) >= 475


def test_a_broken_script_does_not_learn_cartpole(script, launch, tmp_path, monkeypatch):
    right, wrong = BROKEN[script.__name__]
    source = script.SCRIPT.read_text()
    assert source.count(right) == 1
    (tmp_path / script.SCRIPT.name).write_text(source.replace(right, wrong))
    monkeypatch.setattr(script, "__file__", str(tmp_path / script.SCRIPT.name))
    assert cartpole(script, launch, 1, 50_000) < 100
