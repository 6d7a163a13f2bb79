"""What all scripts compute alike: the shared update, the way a gradient takes to it, and repeatable runs."""

import importlib

import numpy as np
import pytest
import torch
from conftest import VALUE_METHODS, checkpoint, train
from torch import nn


def test_rmsprop_is_equations_8_and_9(script):
    torch.manual_seed(1)
    lr, alpha, eps = 0.01, 0.9, 0.1
    shared = script.Shared(torch.randn(50), 1)
    theta, g = shared.params.double(), torch.zeros(50, dtype=torch.float64)
    for _ in range(20):
        delta = torch.randn(50)
        shared.rmsprop_update(delta, lr, alpha, eps)
        g = alpha * g + (1 - alpha) * delta.double() ** 2
        theta = theta - lr * delta.double() / (g + eps).sqrt()
    torch.testing.assert_close(shared.square_avg.double(), g, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(shared.params.double(), theta, rtol=1e-5, atol=1e-6)


def test_gradients_1_2_3_4_arrive_as_1_2_3_4(script):
    model = script.Network(script.make_env("CartPole-v1"))
    shared = script.Shared(model.params, 1)
    for k in 1, 2, 3, 4:
        model.params.copy_(shared.params)
        model.grads.zero_()
        (k * sum(p.sum() for p in model.parameters())).backward()
        before = shared.params.clone()
        # With α = 1, g stays 0; with ε = 1, the step is η times the gradient.
        shared.rmsprop_update(model.grads, 1.0, 1.0, 1.0)
        torch.testing.assert_close(before - shared.params, torch.full_like(before, k), atol=1e-5, rtol=0)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_flat_vectors_stay_the_parameters_and_gradients(script, env_id):
    env = script.make_env(env_id)
    torch.manual_seed(1)
    model = script.Network(env)
    size = sum(p.numel() for p in model.parameters())
    assert len(model.params) == len(model.grads) == size and model.params.std() > 0.01
    output = model(torch.as_tensor(np.stack([env.reset(seed=1)[0]] * 3)))
    (output if torch.is_tensor(output) else output[0] + output[1][:, None]).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert model.grads.norm().item() == pytest.approx(1e-3, rel=1e-2)
    model.params.fill_(7)
    model.grads.fill_(8)
    assert all((p.data == 7).all() and (p.grad == 8).all() for p in model.parameters())


@pytest.mark.parametrize("name", [*VALUE_METHODS, "a2c"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_a_network_can_be_of_parameters_that_are_there(name, env_id):
    Network, env = (script := importlib.import_module(name)).Network, script.make_env(env_id)
    theta = Network(env)
    shared, obs = script.Shared(theta.params, 1), torch.as_tensor(np.stack([env.reset(seed=1)[0]] * 3))
    model = Network(env, shared.params)
    assert torch.equal(shared.params, theta.params)
    shared.params.mul_(2)
    theta.params.mul_(2)
    for output, expected in zip(model(obs), theta(obs), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_one_worker_repeats_a_run_bit_for_bit(script, tmp_path, env_id):
    params = []
    for name, seed in ("first", 1), ("again", 1), ("other", 2):
        run_dir = train(script, tmp_path / name, env_id=env_id, num_workers=1, total_timesteps=500, seed=seed)
        params.append(checkpoint(run_dir)["params"])
    assert torch.equal(params[0], params[1]) and not torch.equal(params[0], params[2])


def test_an_evaluation_repeats(script, tmp_path):
    flags = dict(env_id="CartPole-v1", evaluate=str(train(script, tmp_path, env_id="CartPole-v1", total_timesteps=500)))
    returns = [script.main(script.Args(seed=seed, **flags)) for seed in (1, 1, 2)]
    assert len(returns[0]) == 10 and returns[0] == returns[1] != returns[2]


@pytest.mark.parametrize("kinds", [("Terminates", "InPlace"), ("Square", "SquareInPlace")])
def test_an_environment_may_reuse_its_array(script, tmp_path, kinds):
    params = []
    for kind in kinds:
        flags = dict(num_workers=1, total_timesteps=100)
        params.append(checkpoint(train(script, tmp_path / kind, env_id=f"toy_envs:{kind}-v0", **flags))["params"])
    assert torch.equal(*params)
