"""What all scripts compute alike: networks, initial weights, updates, logs, repeatable runs."""

import math
import runpy
import statistics

import cv2
import pytest
import torch
import toy_envs
from conftest import OF_FEW, OF_ONE, VALUE_METHODS, checkpoint, same, train
from torch import nn
from torch.nn import functional as F

import a3c


def test_rmsprop_is_equations_8_and_9(script):
    torch.manual_seed(1)
    lr, alpha, eps = 0.01, 0.9, 0.1
    shared = script.Shared(nn.Linear(5, 10), 1)
    theta = {name: param.double() for name, param in shared.theta.items()}
    g = {name: torch.ones_like(param) for name, param in theta.items()}
    for _ in range(20):
        deltas = {name: torch.randn(param.shape) for name, param in theta.items()}
        shared.rmsprop_update([*deltas.values()], lr, alpha, eps)
        for name, delta in deltas.items():
            g[name] = alpha * g[name] + (1 - alpha) * delta.double() ** 2
            theta[name] = theta[name] - lr * delta.double() / (g[name] + eps).sqrt()
    for name in theta:
        torch.testing.assert_close(shared.square_avg[name].double(), g[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(shared.theta[name].double(), theta[name], rtol=1e-5, atol=1e-6)


def test_g_of_a_dead_unit_becomes_0(script):
    """Not a denormal, which slows down every further update."""
    torch.set_flush_denormal(False)  # it holds for the whole process, and every script sets it
    shared = runpy.run_path(script.__file__)["Shared"](nn.Linear(5, 10), 1)
    no_grads = [torch.zeros_like(param) for param in shared.theta.values()]
    for _ in range(20):
        shared.rmsprop_update(no_grads, 0.01, 1e-2, 0.1)
    assert not any(g.any() for g in shared.square_avg.values())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_gradients_1_2_3_4_arrive_as_1_2_3_4(script, env_id):
    """rmsprop_update makes one whole step of each gradient, and keeps nothing of the last.

    With α = 1, g stays 1; with ε = 3 and η = 2, the step is the gradient.
    """
    network = script.make_network(script.make_env(env_id), "paper")
    shared = script.Shared(network, 1)
    for k in 1, 2, 3, 4:
        network.load_state_dict(shared.theta)
        before = {name: tensor.clone() for name, tensor in shared.theta.items()}
        loss = k * sum(param.sum() for param in network.parameters())
        grads = torch.autograd.grad(loss, list(network.parameters()))
        shared.rmsprop_update(grads, 2.0, 1.0, 3.0)
        for name, tensor in shared.theta.items():
            step = before[name] - tensor
            torch.testing.assert_close(step, torch.full_like(step, k), atol=1e-5, rtol=0)


def test_a_process_has_one_thread(script):
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    runpy.run_path(script.__file__)
    assert torch.get_num_threads() == cv2.getNumThreads() == 1


def test_the_shared_state_is_a_copy_of_the_network(script):
    network = script.make_network(script.make_env("CartPole-v1"), "paper")
    shared = script.Shared(network, 1)
    assert same(shared.theta, network.state_dict())
    with torch.no_grad():
        for param in network.parameters():
            param.zero_()
    tensors = [shared.theta, shared.square_avg, getattr(shared, "target", {})]
    assert all(tensor.is_shared() for some in tensors for tensor in some.values())
    assert all(tensor.any() for name, tensor in shared.theta.items() if "weight" in name)
    assert all((tensor == 1).all() for tensor in shared.square_avg.values())


@pytest.mark.parametrize("script", VALUE_METHODS, indirect=True)
def test_the_target_starts_as_a_copy_of_theta(script):
    network = script.make_network(script.make_env("CartPole-v1"), "paper")
    shared = script.Shared(network, 1)
    assert same(shared.target, network.state_dict())
    shared.rmsprop_update([*map(torch.ones_like, network.parameters())], 0.01, 0.99, 0.1)
    assert same(shared.target, network.state_dict()) and not same(shared.target, shared.theta)


def linear(network, name, x):
    layer = network.get_submodule(name)
    return F.linear(x, layer.weight, layer.bias)


def test_the_network_for_images_is_section_8s(script):
    torch.manual_seed(1)
    network = script.make_network(script.make_env("toy_envs:Square-v0"), "paper")
    (conv1, conv2), hidden = network.convs[::2], network.hidden[0]
    assert conv1.weight.shape == (16, 4, 8, 8) and conv2.weight.shape == (32, 16, 4, 4)
    assert hidden.out_features == 256
    obs = torch.randint(0, 256, (3, 84, 84, 4), dtype=torch.uint8)
    scaled = obs / 255
    background = torch.tensor([image[::4, ::4].median() for image in scaled])
    scaled -= background.reshape(3, 1, 1, 1)
    x = scaled.permute(0, 3, 1, 2)
    x = F.conv2d(x, conv1.weight, conv1.bias, stride=4).relu()
    x = F.conv2d(x, conv2.weight, conv2.bias, stride=2).relu()
    x = linear(network, "hidden.0", x.permute(0, 2, 3, 1).flatten(1)).relu()
    if script.__name__ in VALUE_METHODS:
        expected = linear(network, "q", x)
    else:
        expected = linear(network, "policy", x), linear(network, "value", x).squeeze(1)
    torch.testing.assert_close(network(obs), expected)
    torch.testing.assert_close(network(scaled), expected)  # other types are taken as they are


def test_the_network_for_other_observations_is_an_mlp(script):
    torch.manual_seed(1)
    network = script.make_network(script.make_env("toy_envs:Matrix-v0"), "paper")
    obs = torch.randn(5, 2, 3)

    def output(name, hidden):
        assert network.get_submodule(hidden).weight.shape == (256, 2 * 3)
        return linear(network, name, linear(network, hidden, obs.flatten(1)).tanh())

    if script.__name__ in VALUE_METHODS:
        expected = output("q", "hidden.0")
    else:
        value = output("value", "value_hidden.0").squeeze(1)
        expected = output("policy", "policy_hidden.0"), value
    torch.testing.assert_close(network(obs), expected)


def layers(script, env_id, init):
    _, network = script.prepare_run(script.Args(env_id=env_id, init=init))
    modules = network.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_orthogonal_initial_weights(script, env_id):
    if script.__name__ in VALUE_METHODS and env_id == "CartPole-v1":
        expected, network = (layers(script, env_id, init) for init in ("paper", "orthogonal"))
        assert all(torch.equal(expected[name].weight, network[name].weight) for name in network)
        return
    for name, layer in layers(script, env_id, "orthogonal").items():
        rows = layer.weight.detach().flatten(1)
        if len(rows) > rows.shape[1]:  # CartPole's hidden layers: 256 rows of 4
            rows = rows.T
        gain = {"policy": 0.01, "value": 1.0, "q": 0.01}.get(name, math.sqrt(2))
        torch.testing.assert_close(rows @ rows.T / gain**2, torch.eye(len(rows)), atol=1e-5, rtol=0)
        assert not layer.bias.any()


@OF_ONE
def test_initial_weights_follow_the_seed_even_if_the_environment_seeds_pytorch(script):
    args = [script.Args("toy_envs:SeedsPyTorch-v0", seed=seed) for seed in (1, 2)]
    networks = [script.prepare_run(one)[1] for one in args]
    assert not same(*(dict(network.named_parameters()) for network in networks))


def test_a_custom_network_gets_initial_weights_and_defaults(script, monkeypatch):
    class Normalized(script.ImageNetwork):
        def __init__(self, num_actions):
            super().__init__(num_actions)
            self.norm = torch.nn.LayerNorm(256)
            self.mix = torch.nn.Linear(256, 256, bias=False)

    args = script.Args(env_id="toy_envs:Square-v0")
    defaults, _ = script.prepare_run(args)
    monkeypatch.setattr(script, "ImageNetwork", Normalized)
    _, network = script.prepare_run(args)
    assert (network.norm.weight == 1).all()
    product = network.mix.weight @ network.mix.weight.T
    torch.testing.assert_close(product / 2, torch.eye(256), atol=1e-5, rtol=0)

    make = script.make_network
    monkeypatch.setattr(script, "make_network", lambda *args: torch.nn.Sequential(make(*args)))
    assert script.prepare_run(args)[0] == defaults


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_the_papers_initial_weights(script, env_id):
    for layer in layers(script, env_id, "paper").values():
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound


def test_clip_grads(script):
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]  # norm 5
    clipped, norm = script.clip_grads(grads, 2.0)
    assert norm == 5
    torch.testing.assert_close([*clipped], [torch.tensor([1.2, 0.0]), torch.tensor([[1.6]])])
    unclipped, norm = script.clip_grads(grads, 5.0)
    assert norm == 5 and all(map(torch.equal, unclipped, grads))
    for bad in math.nan, math.inf:
        with pytest.raises(FloatingPointError):
            script.clip_grads([*grads, torch.tensor([bad])], 2.0)


def test_explained_variance(script):
    """100 updates are sent as one message; so are the next 100, without the first."""
    torch.manual_seed(1)
    sent = []
    log = script.WorkerLog(sent.append)
    for part in range(2):
        returns = [torch.randn(1 + i % 5) for i in range(100)]
        values = [0.5 * some + torch.randn(len(some)) * (part + 1) / 10 for some in returns]
        for i in range(100):
            assert len(sent) == part
            log.update(1000 * part + i, {"losses/some": i + part}, values[i], returns[i])
        errors = torch.cat(returns) - torch.cat(values)
        explained = 1 - errors.var() / torch.cat(returns).var()
        means = {"losses/some": 49.5 + part, "losses/explained_variance": explained.item()}
        assert sent[part] == (1000 * part + 99, pytest.approx(means, rel=1e-4))


def test_no_variance_to_explain(script):
    sent = []
    log = script.WorkerLog(sent.append)
    for i in range(100):
        log.update(i, {"losses/some": 1.0}, torch.randn(5), torch.ones(5))
    assert sent == [(99, {"losses/some": 1.0})]


@pytest.mark.parametrize("script", VALUE_METHODS, indirect=True)
def test_the_logged_td_loss_and_q_values_are_means_per_step(script):
    loss, stats = script.q_loss(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([2.0, 2.0, 4.0]))
    assert loss.item() == 0.5 * (1 + 0 + 4)
    assert stats == {"losses/td_loss": loss.item() / 3, "losses/q_values": 3.0}


def test_the_logged_terms_of_the_loss_are_means_per_step():
    logits, values = torch.zeros(3, 4), torch.tensor([1.0, 2.0, 3.0])
    returns, actions = torch.tensor([2.0, 4.0, 3.0]), torch.tensor([0, 1, 2])
    loss, stats = a3c.actor_critic_loss(logits, values, actions, returns, 0.1, 0.5)
    policy, value, entropy = math.log(4) * (1 + 2 + 0) / 3, 0.5 * (1 + 4 + 0) / 3, math.log(4)
    expected = {"policy_loss": policy, "value_loss": value, "entropy": entropy}
    assert stats == pytest.approx({f"losses/{term}": mean for term, mean in expected.items()})
    assert loss.item() == pytest.approx(3 * (policy - 0.1 * entropy + 0.5 * value))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toy_envs:Square-v0"])
def test_one_worker_repeats_a_run_bit_for_bit(script, tmp_path, env_id):
    params = []
    for name, seed in ("first", 1), ("again", 1), ("other", 2):
        flags = dict(env_id=env_id, num_workers=1, total_timesteps=100, seed=seed)
        params.append(checkpoint(train(script, tmp_path / name, **flags))["params"])
    assert same(params[0], params[1]) and not same(params[0], params[2])


@OF_FEW
def test_an_evaluation_repeats(script, capsys, tmp_path):
    flags = dict(env_id="CartPole-v1")
    run_dir = train(script, tmp_path, total_timesteps=300, **flags)
    flags |= dict(evaluate=str(run_dir), eval_episodes=5)
    returns = [script.main(script.Args(seed=seed, **flags)) for seed in (1, 1, 2)]
    assert len(returns[0]) == 5 and returns[0] == returns[1] != returns[2]
    mean, deviation = statistics.mean(returns[2]), statistics.pstdev(returns[2])
    assert capsys.readouterr().out.endswith(f"return {mean:.2f} ± {deviation:.2f}\n")


@OF_ONE
def test_an_evaluation_shows_the_return_of_each_episode(script, capsys, tmp_path):
    args = script.Args(env_id="toy_envs:CountsEpisodes-v0", eval_episodes=2)
    args, network = script.prepare_run(args)
    script.evaluate(args, network, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["episode 1: return 28", "episode 2: return 28"]


def test_each_episode_of_an_evaluation_has_its_own_seed(script, monkeypatch, tmp_path):
    reset, seeds = toy_envs.Count.reset, []

    def recorded(env, *, seed=None, options=None):
        seeds.append(seed)
        return reset(env, seed=seed, options=options)

    args = script.Args(env_id="toy_envs:CountsEpisodes-v0", seed=7, eval_episodes=3)
    args, network = script.prepare_run(args)
    monkeypatch.setattr(toy_envs.Count, "reset", recorded)
    assert script.evaluate(args, network, tmp_path) == [sum(range(1, 8))] * 3
    assert seeds == [args.seed, args.seed + 1, args.seed + 2]


def test_actions_are_plain_integers_and_observations_may_be_views(script, tmp_path):
    flags = dict(env_id="toy_envs:Picky-v0")
    run_dir = train(script, tmp_path, total_timesteps=60, **flags)
    script.main(script.Args(**flags, evaluate=str(run_dir), eval_episodes=1))


@pytest.mark.parametrize("kinds", [("Terminates", "InPlace"), ("Square", "SquareInPlace")])
def test_an_environment_may_reuse_its_array(script, tmp_path, kinds):
    params = []
    for kind in kinds:
        flags = dict(env_id=f"toy_envs:{kind}-v0", num_workers=1, total_timesteps=60)
        params.append(checkpoint(train(script, tmp_path / kind, **flags))["params"])
    assert same(*params)
