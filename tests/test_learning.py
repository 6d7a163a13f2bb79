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


def cartpole(script, launch, folder, seeds, steps):
    """Trains by README's flags, all seeds at once; returns the mean return of 100 episodes for each.

    With one worker these runs repeat bit for bit, so that the outcome does not depend on how busy the machine is.
    """
    flags = ["--env-id", "CartPole-v1", "--num-workers", 1, "--total-timesteps", steps]
    runs = [launch(script, *flags, "--seed", seed, "--log-dir", folder / str(seed)) for seed in seeds]
    assert [run.ends(900)[0] for run in runs] == [0] * len(runs)
    run_dirs = [next((folder / str(seed)).iterdir()) for seed in seeds]
    evaluations = [script.Args(env_id="CartPole-v1", evaluate=str(run_dir), eval_episodes=100) for run_dir in run_dirs]
    return [np.mean(script.main(evaluation)) for evaluation in evaluations]


def test_cartpole(script, launch, tmp_path):
    assert min(cartpole(script, launch, tmp_path / "logs", (1, 2, 3), 300_000)) >= 475


def test_a_broken_script_does_not_learn_cartpole(script, launch, tmp_path, monkeypatch):
    right, wrong = BROKEN[script.__name__]
    source = script.SCRIPT.read_text()
    assert source.count(right) == 1
    (tmp_path / script.SCRIPT.name).write_text(source.replace(right, wrong))
    monkeypatch.setattr(script, "__file__", str(tmp_path / script.SCRIPT.name))
    assert max(cartpole(script, launch, tmp_path / "logs", (1, 2), 50_000)) < 100
