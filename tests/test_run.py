"""How a run starts, stops, goes on, and what it leaves behind."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PROCESSES, ROOT, SCRIPTS, VALUE_METHODS, checkpoint, scalars, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import multiprocessing as mp

import a2c

UNDER_EACH_METHOD = pytest.mark.parametrize("script, method", PROCESSES, indirect=["script"])
FOREVER = ["--num-workers", 2, "--total-timesteps", 10**9, "--env-id"]


def assert_usable(run_dir):
    saved = checkpoint(run_dir)
    assert saved["steps"].sum() > 0 and saved["updates"].sum() > 0
    assert saved["params"].isfinite().all() and saved["square_avg"].isfinite().all()


@UNDER_EACH_METHOD
def test_a_run_under_each_start_method(script, launch, method):
    run = launch(script, "--env-id", "toy_envs:Told-v0", "--num-workers", 2, "--total-timesteps", 3000, method=method)
    code, _, err = run.ends()
    assert code == 0, err
    assert 3000 <= checkpoint(run.run_dir)["steps"].sum() < 3000 + 2 * 5
    assert_usable(run.run_dir)


@UNDER_EACH_METHOD
def test_a_killed_worker_ends_the_run(script, launch, method):
    run = launch(script, *FOREVER, "toy_envs:Told-v0", method=method)
    os.kill(run.workers(2)[0], signal.SIGKILL)
    code, _, err = run.ends()
    assert code == 1 and "SIGKILL" in err and f"--resume {run.run_dir.relative_to(run.cwd)}" in err
    assert_usable(run.run_dir)


@UNDER_EACH_METHOD
def test_a_killed_main_takes_its_workers_along(script, launch, method):
    run = launch(script, *FOREVER, "toy_envs:Told-v0", method=method)
    run.workers(2)
    os.kill(run.pid, signal.SIGKILL)
    assert run.ends()[0] == -signal.SIGKILL


@pytest.mark.parametrize("kind, background", [("Told", True), ("Hangs", False)])
def test_a_killed_main_takes_any_worker_along(script, launch, kind, background):
    run = launch(script, *FOREVER, f"toy_envs:{kind}-v0", background=background)  # where a shell ignores SIGINT
    run.workers(2)
    os.kill(run.pid, signal.SIGKILL)
    assert run.ends()[0] == -signal.SIGKILL


def test_a_killed_learner_ends_the_run(launch):
    run = launch(a2c, *FOREVER, "toy_envs:Told-v0")
    players = run.workers(2)
    (learner,) = {*run.alive()} - {*players, run.pid}
    os.kill(learner, signal.SIGKILL)
    code, _, err = run.ends()
    assert code == 1 and "SIGKILL" in err
    assert_usable(run.run_dir)


def test_an_environment_that_exits_ends_the_run(script, launch):
    run = launch(script, *FOREVER, "toy_envs:Exits-v0")
    code, _, err = run.ends()
    assert code == 1 and "has ended its worker" in err and f"--resume {run.run_dir.relative_to(run.cwd)}" in err
    assert_usable(run.run_dir)


SIGNALS = [(signal.SIGINT, os.kill, "fork"), (signal.SIGINT, os.killpg, "fork"), (signal.SIGTERM, os.kill, "fork")]
SIGNALS = [(name, *how) for name in SCRIPTS for how in SIGNALS]  # a terminal's Ctrl-C goes to the whole process group
SIGNALS += [(name, signal.SIGINT, os.killpg, "spawn") for name in ("a3c", "a2c")]
SIGNALS += [(name, signal.SIGTERM, os.kill, "forkserver") for name in ("a3c", "a2c")]


@pytest.mark.parametrize("script, signum, kill, method", SIGNALS, indirect=["script"])
def test_a_signal_stops_the_run(script, launch, signum, kill, method):
    run = launch(script, *FOREVER, "toy_envs:Told-v0", method=method)
    run.workers(2)
    kill(run.pid, signum)
    code, _, err = run.ends()
    assert code == 128 + signum
    assert err.splitlines() == [f"to go on: python {script.SCRIPT.name} --resume {run.run_dir.relative_to(run.cwd)}"]
    assert_usable(run.run_dir)


@pytest.mark.parametrize("script", ["a3c", "a2c"], indirect=True)
def test_a_hanging_environment_can_be_stopped(script, launch):
    run = launch(script, *FOREVER, "toy_envs:Hangs-v0")
    run.workers(2)
    os.kill(run.pid, signal.SIGINT)
    assert run.ends()[0] == 130
    assert_usable(run.run_dir)


def test_a_crashing_environment_ends_the_run(script, launch):
    run = launch(script, *FOREVER, "toy_envs:Crashes-v0")
    code, _, err = run.ends()
    assert code == 1 and "in reward" in err and "ArithmeticError: the toy is broken" in err
    assert checkpoint(run.run_dir)["params"].isfinite().all()


@pytest.mark.parametrize("kind", ["RewardNaN", "RewardInf", "SeenNaN"])
def test_numbers_that_are_none_end_the_run_before_they_spread(script, tmp_path, capsys, kind):
    run_dir = train(script, tmp_path, code=1, env_id=f"toy_envs:{kind}-v0", total_timesteps=10**6)
    assert re.search("gradient's norm is (nan|inf)|must be finite", capsys.readouterr().err)
    assert_usable(run_dir)


def test_a_stopped_run_goes_on_from_the_command_line(script, launch):
    total = 30_000
    flags = ["--total-timesteps", total, "--num-workers", 1, "--gamma", 0.9, "--learning-rate", 1e-3]
    run = launch(script, "--env-id", "toy_envs:Told-v0", *flags)
    run.workers(1)
    os.kill(run.pid, signal.SIGINT)
    assert run.ends()[0] == 130
    stopped = int(checkpoint(run.run_dir)["steps"].sum())
    assert 600 <= stopped < total

    run = launch(script, "--resume", run.run_dir, "--rms-eps", 0.5)
    code, _, err = run.ends()
    assert code == 0, err
    args = json.loads((run.run_dir / "args.json").read_text())  # run_dir asserts that there is one folder
    assert args == checkpoint(run.run_dir)["args"]
    assert (args["env_id"], args["gamma"], args["rms_eps"]) == ("toy_envs:Told-v0", 0.9, 0.5)
    assert total <= checkpoint(run.run_dir)["steps"].sum() < total + 5

    rates = scalars(run.run_dir, "charts/learning_rate")
    steps = [step for step, _ in rates]
    assert steps == sorted(set(steps)) and steps[0] < stopped < steps[-1]
    for step, rate in rates:  # logged at the segment's end, taken at its start
        assert 1e-3 * (1 - step / total) <= rate <= 1e-3 * (1 - (step - 5) / total) + 1e-9


@pytest.mark.parametrize("name", [".", "checkpoint.pt"])
def test_resuming_restores_what_was_saved(script, trained, tmp_path, name):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    before = checkpoint(run_dir)
    # There is nothing left to do, so that what is saved is what was restored.
    flags = dict(total_timesteps=int(before["steps"].sum()), num_workers=3, seed=9, resume=str(run_dir / name))
    train(script, tmp_path, **flags)
    after = checkpoint(run_dir)
    tensors = {"params", "square_avg"} | ({"target", "refreshed"} if script.__name__ in VALUE_METHODS else set())
    assert {name for name in after if torch.is_tensor(after[name])} == tensors | {"steps", "updates", "stop"}
    assert all(torch.equal(before[name], after[name]) and after[name].any() for name in tensors)
    assert len(after["steps"]) == 3 and after["steps"].sum() == before["steps"].sum()
    assert after["updates"].sum() == before["updates"].sum()


def test_a_resumed_run_can_be_moved(script, trained, tmp_path, launch):
    run_dir = shutil.copytree(trained, tmp_path / "here" / "run")
    train(script, tmp_path / "here", total_timesteps=4100, resume=str(run_dir))
    code, out, err = launch(script, "--evaluate", shutil.move(run_dir, tmp_path / "there")).ends()
    assert code == 0, err
    assert f"10 episodes: return {sum(range(8)):.2f} ± 0.00" in out


def test_what_a_checkpoint_holds(script, trained):
    saved = checkpoint(trained)
    assert saved["args"]["gamma"] == 0.9 and saved["script"] == script.SCRIPT.stem
    assert saved["args"] == json.loads((trained / "args.json").read_text())
    assert (saved["steps"] > 0).all() and saved["steps"].sum() >= 4000
    a_round = 2 * 5 if script.__name__ == "a2c" else 5  # steps to an update, at most
    assert 4000 > saved["updates"].sum() >= 4000 / a_round
    assert not list(trained.glob("*.part"))


def test_what_is_logged(script, trained):
    tags = {"charts/episodic_return", "charts/episodic_length", "charts/learning_rate", "losses/grad_norm"}
    if script.__name__ in VALUE_METHODS:
        tags |= {"losses/td_loss", "charts/epsilon"}
    else:
        tags |= {"losses/policy_loss", "losses/value_loss", "losses/entropy"}
    if script.__name__ != "a2c":
        tags |= {"async/policy_lag"}
        assert min(lag for _, lag in scalars(trained, "async/policy_lag")) >= 0
    assert {*EventAccumulator(str(trained)).Reload().Tags()["scalars"]} == tags  # charts/SPS comes every ten seconds


def broken_save(then):
    def save(checkpoint, path):
        Path(path).write_bytes(b"PK and no more")
        then()

    return save


def full_disk():
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(script, trained, tmp_path, monkeypatch, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    shared = script.Shared(torch.zeros(3), 1)
    monkeypatch.setattr(torch, "save", broken_save(full_disk))
    assert shared.save(run_dir, script.Args()) is False
    assert "No space left on device" in capsys.readouterr().err
    process = mp.get_context("fork").Process(target=shared.save, args=(run_dir, script.Args()))
    monkeypatch.setattr(torch, "save", broken_save(lambda: os._exit(9)))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert torch.equal(checkpoint(run_dir)["params"], checkpoint(trained)["params"])


def test_a_run_that_could_not_save_says_so(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "save", broken_save(full_disk))
    train(script, tmp_path, code=1, total_timesteps=100)
    assert "No space left on device" in capsys.readouterr().err


def test_main_from_python(script, tmp_path):
    signals = signal.SIGINT, signal.SIGTERM
    handlers = [signal.getsignal(signum) for signum in signals]
    args = script.Args(env_id="CartPole-v1", total_timesteps=2000, num_workers=2, log_dir=str(tmp_path))
    assert script.main(args) is None
    assert [signal.getsignal(signum) for signum in signals] == handlers
    assert mp.active_children() == []
    (run_dir,) = tmp_path.glob(f"CartPole-v1__{script.__name__}__1__*")
    assert sum(value for _, value in scalars(run_dir, "charts/episodic_length")) <= 2000 + 2 * 5


def test_a_file_alone_runs(script, tmp_path):
    command = [sys.executable, shutil.copy(script.__file__, tmp_path), "--env-id", "CartPole-v1"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    flags = ["--num-workers", "2", "--total-timesteps", "500"]
    subprocess.run([*command, *flags], cwd=tmp_path, env=env, timeout=120, check=True)
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 1


def test_a_file_imports_only_its_requirements(script):
    source = Path(script.__file__).read_text()
    assert len(source.splitlines()) <= 400
    pins = (ROOT / "requirements.txt").read_text().split()
    header = re.search(r"# /// script\n(.*?)# ///\n", source, re.DOTALL)[1]
    assert re.findall(r'"([\w-]+==[^"]+)"', header) == pins
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split(".")[0])
    packages = importlib.metadata.packages_distributions()
    required = {pin.split("==")[0] for pin in pins} | {"numpy"}  # which is what Gymnasium's observations are made of
    for module in modules - sys.stdlib_module_names:
        assert required.intersection(packages.get(module, [])), module
