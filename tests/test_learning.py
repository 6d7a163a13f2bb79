"""The scripts learn with their defaults."""

import numpy as np
import pytest
from conftest import VALUE_METHODS, train


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_learns_from_pixels(script, tmp_path, seed):
    """The bright one of four quadrants tells which action pays 1. Chance is 2.5 in 10 steps."""
    env_id, flags = "toy_envs:Quadrants-v0", {"rms_alpha": 0.99}  # so that g forgets 1 in time
    if script.__name__ in VALUE_METHODS:
        flags |= dict(exploration_steps=2000, target_interval=500)
    run_dir = train(script, tmp_path, env_id=env_id, total_timesteps=8000, seed=seed, **flags)
    returns = script.main(script.Args(env_id=env_id, evaluate=str(run_dir), eval_episodes=20))
    assert np.mean(returns) > 6


def cartpole(script, launch, folder, seeds, *flags):
    """Trains on all seeds at once; returns the mean return of 100 episodes for each."""
    flags = ["--env-id", "CartPole-v1", *flags]
    folders = [folder / str(seed) for seed in seeds]
    runs = [
        launch(script, *flags, "--seed", seed, "--log-dir", log_dir)
        for seed, log_dir in zip(seeds, folders, strict=True)
    ]
    assert [run.ends(1800)[0] for run in runs] == [0] * len(runs)
    run_dirs = [next(log_dir.iterdir()) for log_dir in folders]
    return [
        np.mean(script.main(script.Args("CartPole-v1", evaluate=str(run_dir), eval_episodes=100)))
        for run_dir in run_dirs
    ]


@pytest.mark.slow
def test_it_learns_cartpole_with_its_defaults(script, launch, tmp_path):
    seeds, threshold = (1, 2), 400
    if script.__name__ in VALUE_METHODS:
        # They take longer. Beside other work, a run now and then ends below 400, one at 229.
        seeds, threshold = (1,), 200  # random play returns about 20
    assert min(cartpole(script, launch, tmp_path / "logs", seeds)) >= threshold
