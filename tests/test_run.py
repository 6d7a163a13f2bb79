"""How a run starts, stops, goes on, and what it leaves behind."""

import ast
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    FEW,
    OF_FEW,
    OF_ONE,
    OF_TWO,
    PROCESSES,
    ROOT,
    SPAWNED,
    TESTS,
    VALUE_METHODS,
    checkpoint,
    scalars,
    train,
    wait_for,
)
from packaging.requirements import Requirement
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import multiprocessing as mp

UNDER_EACH_METHOD = pytest.mark.parametrize("script, method", PROCESSES, indirect=["script"])
SPAWNED_ONLY = pytest.mark.parametrize("script, method", SPAWNED, indirect=["script"])
FOREVER = ["--num-workers", 2, "--total-timesteps", 10**9, "--env-id"]


def assert_usable(run_dir, name="checkpoint.pt"):
    saved = checkpoint(run_dir, name)
    assert saved["steps"].sum() > 0 and saved["updates"].sum() > 0
    for tensors in saved["params"], saved["square_avg"]:
        assert tensors and all(tensor.isfinite().all() for tensor in tensors.values())


def how_to_continue(script, run) -> str:
    run_dir = run.run_dir.relative_to(run.cwd)
    return f"to continue: {shlex.join(['python', str(script.SCRIPT), '--resume', str(run_dir)])}"


@UNDER_EACH_METHOD
def test_a_run_under_each_start_method(script, launch, method):
    flags = ["--env-id", "toy_envs:Told-v0", "--num-workers", 2, "--total-timesteps", 3000]
    run = launch(script, *flags, method=method)
    code, _, err = run.ends()
    assert code == 0, err
    assert 3000 <= checkpoint(run.run_dir)["steps"].sum() < 3000 + 2 * 5
    assert_usable(run.run_dir)


@UNDER_EACH_METHOD
def test_a_killed_worker_ends_the_run(script, launch, method):
    run = launch(script, *FOREVER, "toy_envs:Told-v0", method=method)
    os.kill(run.workers()[0], signal.SIGKILL)
    code, _, err = run.ends()
    lost, *_, last = err.splitlines()
    assert code == 1 and last == how_to_continue(script, run)
    assert lost.startswith(f"{script.SCRIPT.name}: a worker was lost: ") and "SIGKILL" in lost
    assert_usable(run.run_dir)


@OF_TWO
def test_a_killed_worker_ends_the_run_even_if_it_has_left_a_process(script, launch):
    run = launch(script, *FOREVER, "toy_envs:LeavesProcess-v0")
    os.kill(run.workers()[0], signal.SIGKILL)
    code, _, err = run.ends()
    assert code == 1 and "a worker was lost: exit code -9" in err


def watched(script, join, exit_codes, signum=0, total=10):
    """What watch returns for workers that have taken 4 steps."""
    recorder = SimpleNamespace(
        log=lambda message: None,
        progress=lambda step: None,
        save_if_due=lambda: None,
        args=script.Args(total_timesteps=total),
    )
    processes = [SimpleNamespace(exitcode=code) for code in exit_codes]
    workers = SimpleNamespace(join=join, processes=processes)
    shared = SimpleNamespace(steps=torch.tensor([4]))
    return script.watch(workers, [], shared, recorder, SimpleNamespace(signum=signum))


@OF_ONE
def test_a_killed_worker_is_not_told_to_have_exited(script, capsys):
    def join(timeout):
        raise RuntimeError("terminated with signal SIGKILL")

    assert watched(script, join, [None, None])
    told = capsys.readouterr().err
    assert told == "a3c.py: a worker was lost: terminated with signal SIGKILL\n"


@OF_ONE
def test_a_single_worker_that_exits_ends_the_run(script, capsys):
    answers = iter([False])  # a further call fails, so that the test cannot hang
    assert watched(script, lambda timeout: next(answers), [0, None])
    assert "a worker has exited" in capsys.readouterr().err


@OF_TWO
def test_a_signal_after_the_last_step_comes_too_late(script, tmp_path, capsys, monkeypatch):
    name = "coordinator" if script.__name__ == "a2c" else "watch"
    function = getattr(script, name)

    def run_and_terminate(*args):
        result = function(*args)
        signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(script, name, run_and_terminate)
    train(script, tmp_path, code=0, total_timesteps=100)
    assert "to continue" not in capsys.readouterr().err


@SPAWNED_ONLY
def test_a_killed_main_takes_its_workers_along(script, launch, method):
    run = launch(script, *FOREVER, "toy_envs:Told-v0", method=method)
    run.workers()
    os.kill(run.pid, signal.SIGKILL)
    assert run.ends()[0] == -signal.SIGKILL


@OF_FEW
@pytest.mark.parametrize("kind, background", [("Told", True), ("Hangs", False)])
def test_a_killed_main_takes_any_worker_along(script, launch, kind, background):
    run = launch(script, *FOREVER, f"toy_envs:{kind}-v0", background=background)
    run.workers()
    os.kill(run.pid, signal.SIGKILL)
    assert run.ends()[0] == -signal.SIGKILL


@OF_TWO
@pytest.mark.parametrize(
    "kill, signum",
    [(os.kill, signal.SIGKILL), (os.killpg, signal.SIGINT), (os.kill, signal.SIGINT)],
    ids=["main is killed", "Ctrl-C in a terminal", "SIGINT to main"],
)
def test_environments_may_take_seconds_to_close(script, launch, kill, signum):
    run = launch(script, *FOREVER, "toy_envs:ClosesSlowly-v0")
    workers = run.workers()
    kill(run.pid, signum)
    run.ends()
    assert all((run.started / f"{pid} is closed").exists() for pid in workers)


@OF_ONE
def test_a_worker_is_interrupted_once(script):
    """The kernel may repeat its SIGINT, which would cut an environment's close() short."""
    signums = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers = [signal.getsignal(signum) for signum in signums]
    try:
        script.prepare_worker(1)
        interrupts = 0
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                interrupts += 1
        assert interrupts == 1
    finally:
        for signum, handler in zip(signums, handlers, strict=True):
            signal.signal(signum, handler)


@OF_FEW
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_environment_that_exits_ends_the_run(script, launch, num_workers):
    run = launch(script, *FOREVER, "toy_envs:Exits-v0", "--num-workers", num_workers)
    code, _, err = run.ends()
    assert code == 1 and how_to_continue(script, run) in err
    assert err.count("does its environment call exit()?") == 1 and "SIGKILL" not in err
    assert_usable(run.run_dir)


@OF_ONE
def test_a_worker_that_hangs_at_the_end_is_given_up(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOY_DIR", str(tmp_path))
    clock = SimpleNamespace(monotonic=lambda: 20 * time.monotonic())  # a minute in three seconds
    monkeypatch.setattr(script, "time", clock)
    flags = {"env_id": "toy_envs:OneHangs-v0", "total_timesteps": 2000}
    run_dir = train(script, tmp_path / "runs", code=1, **flags)
    assert capsys.readouterr().err.count("does its environment hang?") == 1
    assert checkpoint(run_dir)["steps"].sum() >= 2000


@OF_ONE
@pytest.mark.parametrize("signum, given_up", [(0, False), (signal.SIGINT, True)])
def test_at_the_end_workers_get_a_minute_and_after_a_signal_ten_seconds(
    script, monkeypatch, signum, given_up
):
    clock = SimpleNamespace(now=0, monotonic=lambda: clock.now)
    monkeypatch.setattr(script, "time", clock)

    def join(timeout):  # all workers have ended after 50 seconds
        clock.now += 5
        return clock.now > 50

    assert watched(script, join, [None], signum, total=4) == given_up


@OF_TWO
@pytest.mark.parametrize("error", [BlockingIOError("no more processes"), KeyError("a bug")])
def test_a_start_that_fails_leaves_no_process(script, tmp_path, monkeypatch, capsys, error):
    start, started = mp.Process.start, []

    def fails_at_the_second(process):
        if started:
            raise error
        started.append(process)
        start(process)

    monkeypatch.setattr(script, "num_cores", lambda: 2, raising=False)  # a2c.py's processes
    bystander = mp.get_context("fork").Process(target=time.sleep, args=(600,))
    bystander.start()  # a child of the program that calls main
    try:
        monkeypatch.setattr(mp.get_context("fork").Process, "start", fails_at_the_second)
        if isinstance(error, OSError):  # too much for the machine
            train(script, tmp_path, code=2, env_id="CartPole-v1", total_timesteps=10**9)
            advice = "lower --num-workers(, or give it fewer cores .*)?"
            told = rf"error: cannot start 2 \w+: no more processes: .* {advice}\n$"
            assert re.search(told, capsys.readouterr().err)
        else:
            with pytest.raises(KeyError):
                train(script, tmp_path, env_id="CartPole-v1", total_timesteps=10**9)
        wait_for(lambda: not started[0].is_alive(), 10)
        assert bystander.is_alive()
    finally:
        bystander.kill()


@OF_ONE
def test_runs_of_one_second_have_their_own_folders(script, tmp_path, monkeypatch):
    times = iter([datetime(2026, 1, 1, microsecond=1), datetime(2026, 1, 1, microsecond=2)])
    monkeypatch.setattr(script, "datetime", SimpleNamespace(now=lambda: next(times)))
    args = script.Args("ALE/Pong-v5", log_dir=str(tmp_path))
    run_dirs = [script.start_run(args, torch.nn.Linear(3, 1))[1] for _ in range(2)]
    assert sorted(tmp_path.iterdir()) == sorted(run_dirs) and run_dirs[0] != run_dirs[1]


@OF_ONE
def test_nohup_is_respected(script):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with script.StopSignals(torch.zeros(1, dtype=torch.bool)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


# A terminal's Ctrl-C goes to the whole process group.
HOW = [(signal.SIGINT, os.kill), (signal.SIGINT, os.killpg)]
HOW += [(signal.SIGTERM, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGHUP, os.killpg)]
SIGNALS = [(name, *how, "fork") for name in FEW for how in HOW]
SIGNALS += [
    pytest.param(name, *how, marks=pytest.mark.slow)
    for name in ("a3c", "a2c")
    for how in [(signal.SIGINT, os.killpg, "spawn"), (signal.SIGTERM, os.kill, "forkserver")]
]


@pytest.mark.parametrize("script, signum, kill, method", SIGNALS, indirect=["script"])
def test_a_signal_stops_the_run(script, launch, signum, kill, method):
    if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip("pytest runs under nohup, and so do the scripts")
    run = launch(script, *FOREVER, "toy_envs:Told-v0", method=method)
    run.workers()
    kill(run.pid, signum)
    code, _, err = run.ends()
    assert code == 128 + signum
    assert err.splitlines() == [how_to_continue(script, run)]
    assert_usable(run.run_dir)


@pytest.mark.slow
@OF_TWO
def test_a_hanging_environment_can_be_stopped(script, launch):
    run = launch(script, *FOREVER, "toy_envs:Hangs-v0")
    run.workers()
    os.kill(run.pid, signal.SIGINT)
    code, _, err = run.ends()
    assert code == 130 and how_to_continue(script, run) in err
    assert_usable(run.run_dir)


@OF_ONE  # a2c.py ends with the same output without a second Ctrl-C, only later
def test_a_second_ctrl_c_does_not_wait_for_a_hanging_environment(script, launch):
    run = launch(script, *FOREVER, "toy_envs:Hangs-v0")
    run.workers()
    os.kill(run.pid, signal.SIGINT)
    time.sleep(2)
    assert run.returncode is None
    os.kill(run.pid, signal.SIGINT)
    code, _, err = run.ends()
    # No line says that an environment hangs.
    assert code == 130 and err.strip() == how_to_continue(script, run)
    assert_usable(run.run_dir)


@OF_ONE
def test_of_further_signals_only_ctrl_c_exits(script):
    stop = torch.zeros(1, dtype=torch.bool)
    with script.StopSignals(stop) as signals:
        for signum in signal.SIGTERM, signal.SIGTERM, signal.SIGHUP:
            signal.raise_signal(signum)
        assert stop and signals.signum == signal.SIGTERM
        with pytest.raises(SystemExit) as exited:
            signal.raise_signal(signal.SIGINT)
    assert exited.value.code == 130


# PYTHONUNBUFFERED would leave nothing to flush when a process starts or exits.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@OF_TWO
def test_the_exit_code_does_not_depend_on_a_reader(script, tmp_path):
    """As in `python a3c.py | head -1`."""
    flags = ["--env-id", "toy_envs:PrintsAtClose-v0", "--total-timesteps", "1000"]
    command, pipe = [sys.executable, script.__file__, *flags], subprocess.PIPE
    env = {**BUFFERED, "PYTHONPATH": str(ROOT / "tests")}
    run = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)
    for line in run.stdout:
        if line.startswith(f"{script.__name__}.py: run folder"):
            break
    run.stdout.close()
    errors = run.stderr.read()
    assert "Exception ignored" not in errors and "lost" not in errors
    assert run.wait() == 0


@OF_TWO
def test_a_run_starts_although_nobody_reads_its_output(script, tmp_path):
    """As in `python a3c.py | true`."""
    flags = ["--env-id", "CartPole-v1", "--num-workers", "2", "--total-timesteps", "1000"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    command, pipe = [sys.executable, script.__file__, *flags], subprocess.PIPE
    run = subprocess.run(command, cwd=tmp_path, env=BUFFERED, stdout=write_end, stderr=pipe)
    os.close(write_end)
    assert run.returncode == 0, run.stderr
    (run_dir,) = tmp_path.glob("runs/*")
    assert_usable(run_dir)


@OF_TWO
def test_the_exit_code_of_an_evaluation_does_not_depend_on_a_reader(script, tmp_path):
    run_dir = train(script, tmp_path, env_id="CartPole-v1", total_timesteps=100)
    flags = ["--evaluate", str(run_dir), "--eval-episodes", "500"]
    command, pipe = [sys.executable, script.__file__, *flags], subprocess.PIPE
    run = subprocess.Popen(command, env=BUFFERED, stdout=pipe, stderr=pipe, text=True)
    assert run.stdout.readline().startswith("episode 1: return ")
    run.stdout.close()
    assert "Exception ignored" not in run.stderr.read()
    assert run.wait() == 0


@OF_TWO
def test_checkpoints_during_a_run(script, launch):
    run = launch(script, "--checkpoint-interval", 0, *FOREVER, "toy_envs:Told-v0")
    run.workers()
    wait_for((run.run_dir / "checkpoint.prev.pt").exists)
    assert run.returncode is None
    os.kill(run.pid, signal.SIGKILL)
    run.ends()
    assert_usable(run.run_dir)


@OF_TWO
@pytest.mark.parametrize("kind", ["StartsProcess", "LeavesProcess"])
def test_an_environment_may_start_processes(script, tmp_path, kind):
    train(script, tmp_path, env_id=f"toy_envs:{kind}-v0", total_timesteps=100)


def test_observations_of_another_shape_end_the_run(script, tmp_path):
    train(script, tmp_path, code=1, env_id="toy_envs:WrongShape-v0", total_timesteps=100)


@OF_FEW
@pytest.mark.parametrize("kind", ["Crashes", "CrashesWithThread"])
def test_a_crashing_environment_ends_the_run(script, launch, kind):
    run = launch(script, *FOREVER, f"toy_envs:{kind}-v0")
    code, _, err = run.ends()
    assert code == 1 and "in reward" in err and "ArithmeticError: the toy is broken" in err
    assert kind == "CrashesWithThread" or err.count("ArithmeticError: the toy is broken") == 1
    assert (run.run_dir / "checkpoint.pt").exists()


@OF_TWO
def test_an_environment_that_raises_is_reported_even_if_it_has_left_a_process(script, launch):
    run = launch(script, *FOREVER, "toy_envs:CrashesBesideProcess-v0")
    code, _, err = run.ends()
    assert code == 1 and "in reward" in err and "ArithmeticError: the toy is broken" in err


@OF_TWO
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, where, error",
    [
        ("CrashesAndHangs", "in step", "ArithmeticError"),
        ("CrashesWhenMade", "in __init__", "ArithmeticError"),
        ("ExitsWithThread", "in reward", "SystemExit"),
    ],
)
def test_an_environment_that_raises_is_reported_even_if_it_hangs(
    script, launch, kind, where, error
):
    run = launch(script, *FOREVER, f"toy_envs:{kind}-v0")
    code, _, err = run.ends()
    assert code == 1 and where in err and f"{error}: the toy is broken" in err
    assert how_to_continue(script, run) in err


@OF_TWO
def test_an_environment_that_ignores_signals_can_be_stopped(script, launch):
    run = launch(script, *FOREVER, "toy_envs:IgnoresSignals-v0")
    run.workers()
    os.kill(run.pid, signal.SIGTERM)
    code, _, err = run.ends()
    assert code == 128 + signal.SIGTERM and how_to_continue(script, run) in err


@OF_TWO
def test_an_environment_that_fails_to_close_is_reported(script, tmp_path, capsys):
    train(script, tmp_path, code=1, env_id="toy_envs:CrashesAtClose-v0", total_timesteps=100)
    err = capsys.readouterr().err
    assert "in close" in err and "ArithmeticError: the toy cannot be closed" in err
    assert "to continue" not in err  # all steps have been taken


@pytest.mark.parametrize("kind", ["RewardNaN", "RewardInf", "SeenNaN"])
def test_nan_or_infinity_ends_the_run_before_it_spreads(
    script, tmp_path, tmp_path_factory, monkeypatch, capsys, kind
):
    toys = tmp_path_factory.mktemp("toys")
    monkeypatch.setenv("TOY_DIR", str(toys))
    flags = {"env_id": f"toy_envs:{kind}-v0", "total_timesteps": 10**6}
    train(script, tmp_path, code=1, **flags)
    assert list(toys.glob("* is closed"))
    err = capsys.readouterr().err
    assert re.search("gradient's norm is (nan|inf)|π is NaN", err)
    (run_dir,) = tmp_path.iterdir()
    command = shlex.join(["python", str(script.SCRIPT), "--resume", str(run_dir)])
    assert f"to continue: {command}" in err
    assert_usable(run_dir)


@OF_ONE
def test_nan_ends_an_optimized_run(script, tmp_path):
    command = [sys.executable, "-O", script.__file__, "--env-id", "toy_envs:RewardNaN-v0"]
    env = {**os.environ, "PYTHONPATH": str(TESTS), "TOY_DIR": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 1 and "FloatingPointError: the gradient's norm is nan" in run.stderr
    assert_usable(*tmp_path.glob("runs/*"))


@OF_FEW
def test_a_stopped_run_goes_on_from_the_command_line(script, launch):
    flags = ["--total-timesteps", 10**6, "--num-workers", 1, "--gamma", 0.9]
    flags += ["--learning-rate", 1e-3]
    run = launch(script, "--env-id", "toy_envs:Told-v0", *flags)
    run.workers(1)
    os.kill(run.pid, signal.SIGINT)
    assert run.ends()[0] == 130
    stopped = int(checkpoint(run.run_dir)["steps"].sum())
    assert 600 <= stopped < 10**6

    total = stopped + 5000
    flags = ["--rms-eps", 0.5, "--total-timesteps", total]
    run = launch(script, "--resume", run.run_dir, *flags)
    code, _, err = run.ends(300)
    assert code == 0, err
    args = json.loads((run.run_dir / "args.json").read_text())  # there is one folder
    assert args == checkpoint(run.run_dir)["args"]
    assert (args["env_id"], args["gamma"], args["rms_eps"]) == ("toy_envs:Told-v0", 0.9, 0.5)
    assert total <= checkpoint(run.run_dir)["steps"].sum() < total + 5

    rates = scalars(run.run_dir, "charts/learning_rate")
    steps = [step for step, _ in rates]
    assert steps == sorted(set(steps)) and steps[0] < stopped < steps[-1]
    for step, rate in rates:  # the mean of 100 updates, of 5 steps at most
        if step <= stopped:
            continue
        assert 1e-3 * (1 - step / total) <= rate <= 1e-3 * (1 - (step - 500) / total) + 1e-9


@OF_ONE
def test_what_was_logged_after_the_checkpoint_is_hidden(script, tmp_path):
    run_dir = train(script, tmp_path, num_workers=1, total_timesteps=2000)
    before = scalars(run_dir, "charts/episodic_return")
    saved = checkpoint(run_dir)
    stopped, _ = before[len(before) // 2]
    saved["steps"][:] = torch.tensor([stopped])  # as if the run had been killed later
    torch.save(saved, run_dir / "checkpoint.pt")

    # Sixteen workers have taken steps before the last of them has started.
    train(script, tmp_path, num_workers=16, total_timesteps=9000, resume=str(run_dir))
    after = scalars(run_dir, "charts/episodic_return")
    kept = [point for point in before if point[0] <= stopped]
    assert after[: len(kept)] == kept and stopped < after[len(kept)][0]
    steps = [step for step, _ in after]
    assert steps == sorted({*steps}) and steps[-1] > 2000


def test_the_steps_of_a_tag_increase(script, tmp_path):
    # TensorBoard's fast reader would drop the other points.
    run_dir = train(script, tmp_path, num_workers=4, total_timesteps=4000)
    logged = scalars(run_dir, "charts/episodic_return")
    steps = [step for step, _ in logged]
    assert steps == sorted({*steps})
    # Episodes of 7 steps each; the last of each worker has not ended.
    assert 4000 // 7 - 4 <= len(steps) <= 4020 // 7


@OF_ONE
def test_messages_of_several_workers_are_logged_by_step(script):
    logged, pipes = [], [mp.Pipe(duplex=False) for _ in range(2)]
    for (_, sender), steps in zip(pipes, [(2, 3), (1, 4)], strict=True):
        for step in steps:
            sender.send((step, {}))
    recorder = SimpleNamespace(
        log=lambda message: logged.append(message[0]),
        progress=lambda step: None,
        save_if_due=lambda: None,
        args=script.Args(total_timesteps=1),
    )
    workers = SimpleNamespace(join=lambda timeout: True, processes=[])
    shared, signals = SimpleNamespace(steps=torch.tensor([4])), SimpleNamespace(signum=0)
    assert not script.watch(workers, [pipe[0] for pipe in pipes], shared, recorder, signals)
    assert logged == [1, 2, 3, 4]


@OF_ONE
def test_points_of_a_tag_get_increasing_steps(script, tmp_path):
    args = script.Args(total_timesteps=1000)
    recorder = script.Recorder(script.Shared(torch.nn.Linear(3, 1), 1), args, tmp_path, 0)
    for step, length in (5, 1.0), (5, 2.0), (3, 3.0), (9, 4.0):
        recorder.log((step, {"charts/episodic_length": length}))
    recorder.close()
    points = [(5, 1.0), (6, 2.0), (7, 3.0), (9, 4.0)]
    assert scalars(tmp_path, "charts/episodic_length") == points


@OF_FEW
def test_a_run_in_training_is_not_resumed(script, launch):
    flags = ["--env-id", "toy_envs:Told-v0", "--num-workers", 2, "--checkpoint-interval", 0]
    run = launch(script, *flags, "--total-timesteps", 10**9)
    run.workers()
    wait_for(lambda: (run.run_dir / "checkpoint.pt").exists())
    before = (run.run_dir / "args.json").read_text()

    code, _, err = launch(script, "--resume", run.run_dir, "--gamma", 0.5).ends()
    assert code == 2 and f"another process is training the run in {run.run_dir}" in err
    assert (run.run_dir / "args.json").read_text() == before and run.returncode is None

    os.kill(run.pid, signal.SIGKILL)  # which must leave no lock
    run.ends()
    steps = int(checkpoint(run.run_dir)["steps"].sum())
    flags = ["--gamma", 0.5, "--total-timesteps", steps + 100]
    code, _, err = launch(script, "--resume", run.run_dir, *flags).ends()
    assert code == 0, err
    assert json.loads((run.run_dir / "args.json").read_text())["gamma"] == 0.5


class WorkersStart(Exception):
    pass


def test_each_worker_has_a_seed_of_its_own_also_with_another_seed_and_after_a_resume(
    script, trained, tmp_path, monkeypatch
):
    seeds = []

    def start(function, args, **kwargs):
        seeds.extend(args[1])
        raise WorkersStart

    monkeypatch.setattr(script.mp, "start_processes", start)
    flags = dict(env_id="toy_envs:Terminates-v0", num_workers=4, total_timesteps=10**6)
    run_dir = shutil.copytree(trained, tmp_path / "run")
    for run in dict(seed=1), dict(seed=2), dict(seed=1, resume=str(run_dir)):
        with pytest.raises(WorkersStart):
            script.main(script.Args(log_dir=str(tmp_path), **flags, **run))
    assert len({*seeds}) == 12


def test_every_episode_is_logged(script, tmp_path):
    run_dir = train(script, tmp_path, num_workers=1, total_timesteps=70)
    logged = scalars(run_dir, "charts/episodic_return")
    assert [step for step, _ in logged] == [*range(7, 71, 7)]


@pytest.mark.parametrize("name", [".", "checkpoint.pt"])
def test_resuming_restores_what_was_saved(script, trained, tmp_path, name):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    before = checkpoint(run_dir)
    flags = dict(env_id="toy_envs:Terminates-v0", num_workers=3, seed=9)
    args, network = script.prepare_run(script.Args(resume=str(run_dir / name), **flags))
    shared, folder = script.start_run(args, network)
    script.save_checkpoint(shared, args, folder)
    after = checkpoint(run_dir)
    groups = {"params", "square_avg"}
    if script.__name__ in VALUE_METHODS:
        groups |= {"target"}
        assert before["refreshed"] == after["refreshed"] > 0
    assert {name for name in after if isinstance(after[name], dict)} == groups | {"args"}
    for group in groups:
        assert before[group].keys() == after[group].keys()
        for name, tensor in after[group].items():
            assert torch.equal(before[group][name], tensor) and tensor.any()
    assert len(after["steps"]) == 3 and after["steps"].sum() == before["steps"].sum()
    assert after["updates"].sum() == before["updates"].sum()


@OF_FEW
def test_resuming_a_complete_run_changes_nothing(script, trained, tmp_path, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in run_dir.iterdir()}
    train(script, tmp_path, total_timesteps=4000, seed=9, resume=str(run_dir))
    assert "the run is complete: raise --total-timesteps" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in run_dir.iterdir()} == before


@pytest.mark.parametrize("script", ["a2c"], indirect=True)
def test_too_little_memory_for_observations_is_reported(script, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(script, "Buffers", full)
    with pytest.raises(SystemExit, match="2"):
        script.main(script.Args(env_id="toy_envs:Terminates-v0", log_dir=str(tmp_path)))
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot share the observations of 16 environments: unable to allocate" in line


@OF_FEW
def test_a_run_that_has_gone_on_is_not_resumed(script, trained, tmp_path, monkeypatch, capsys):
    run_dir, lock = shutil.copytree(trained, tmp_path / "run"), script.lock
    before = (run_dir / "args.json").read_text()

    def late_lock(file):  # another process has saved before this one gets the lock
        saved = checkpoint(run_dir)
        saved["steps"][0] += 5
        torch.save(saved, run_dir / "checkpoint.pt")
        lock(file)

    monkeypatch.setattr(script, "lock", late_lock)
    train(script, tmp_path, code=2, total_timesteps=5000, resume=str(run_dir))
    assert "another process has just trained the run" in capsys.readouterr().err
    assert (run_dir / "args.json").read_text() == before
    assert checkpoint(run_dir)["steps"].sum() == checkpoint(trained)["steps"].sum() + 5


@OF_ONE
def test_the_checkpoint_before_is_kept(script, trained, tmp_path):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    train(script, tmp_path, total_timesteps=4500, resume=str(run_dir))
    before, after = checkpoint(run_dir, "checkpoint.prev.pt"), checkpoint(run_dir)
    assert before["steps"].sum() == checkpoint(trained)["steps"].sum() < after["steps"].sum()
    assert_usable(run_dir, "checkpoint.prev.pt")


@OF_ONE
def test_a_checkpoint_is_on_the_disk_before_it_replaces_the_old_one(
    script, trained, tmp_path, monkeypatch
):
    run_dir, calls = shutil.copytree(trained, tmp_path / "run"), []

    def record(name):
        function = getattr(os, name)

        def recorded(*args):
            calls.append(name)
            function(*args)

        monkeypatch.setattr(os, name, recorded)

    record("fsync")
    record("replace")
    assert script.save_checkpoint(script.Shared(torch.nn.Linear(3, 1), 1), script.Args(), run_dir)
    assert calls == ["fsync", "replace", "replace"]


@OF_ONE
def test_the_checkpoint_before_is_kept_if_it_cannot_be_replaced(
    script, trained, tmp_path, monkeypatch
):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    train(script, tmp_path, total_timesteps=4500, resume=str(run_dir))
    before = (run_dir / "checkpoint.prev.pt").read_bytes()

    def copy_a_part(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        full_disk()

    monkeypatch.setattr(script.shutil, "copyfile", copy_a_part)
    train(script, tmp_path, total_timesteps=5000, resume=str(run_dir))
    assert (run_dir / "checkpoint.prev.pt").read_bytes() == before
    assert checkpoint(run_dir)["steps"].sum() >= 5000


@OF_FEW
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
    tags = {"charts/episodic_return", "charts/episodic_length", "charts/learning_rate"}
    tags |= {"charts/SPS", "losses/grad_norm", "losses/explained_variance"}
    if script.__name__ in VALUE_METHODS:
        tags |= {"losses/td_loss", "losses/q_values", "charts/epsilon"}
    else:
        tags |= {"losses/policy_loss", "losses/value_loss", "losses/entropy"}
    if script.__name__ != "a2c":
        tags |= {"async/policy_lag"}
    logged = EventAccumulator(str(trained)).Reload().Tags()
    assert {re.sub(r"/[01]$", "", tag) for tag in logged["scalars"]} == tags
    assert logged["tensors"] == ["arguments/text_summary"]
    *_, (step, speed) = scalars(trained, "charts/SPS")  # also at the end of a short run
    assert step == checkpoint(trained)["steps"].sum() and speed > 0


@OF_ONE
def test_progress_is_a_line_every_ten_seconds_and_at_the_end(script, tmp_path, capsys):
    args = script.Args(total_timesteps=1000)
    recorder = script.Recorder(script.Shared(torch.nn.Linear(3, 1), 1), args, tmp_path, 0)
    for number in range(150):
        recorder.log((number, {"charts/episodic_return": float(number)}))
    recorder.progress(500)
    assert not capsys.readouterr().out

    recorder.last_report -= 10
    recorder.progress(500)
    line = capsys.readouterr().out
    assert "500/1000" in line and "return 99.5" in line  # of the last 100 episodes
    assert line.isascii()  # whatever the encoding of the file that it goes to
    recorder.progress(1003, last=True)
    assert "100%" in (line := capsys.readouterr().out) and "1000/1000" in line
    recorder.close()


@OF_ONE
def test_progress_on_a_terminal(script, tmp_path, capsys, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    args = script.Args(total_timesteps=1000)
    shared = script.Shared(torch.nn.Linear(3, 1), 1)
    recorder = script.Recorder(shared, args, tmp_path, 0)
    shared.steps += 1003
    recorder.close()
    assert "1000/1000" in terminal.getvalue() and not capsys.readouterr().out


@OF_ONE
def test_reports_and_checkpoints_keep_their_distance(script, tmp_path, monkeypatch, capsys):
    clock, saved = SimpleNamespace(now=0, monotonic=lambda: clock.now), []
    monkeypatch.setattr(script, "time", clock)
    monkeypatch.setattr(script, "save_checkpoint", lambda *args: saved.append(clock.now))
    args = script.Args(total_timesteps=1000, checkpoint_interval=60)
    recorder = script.Recorder(script.Shared(torch.nn.Linear(3, 1), 1), args, tmp_path, 0)
    for clock.now in range(0, 200, 5):
        recorder.progress(clock.now)
        recorder.save_if_due()
    assert capsys.readouterr().out.count("/1000") == 19  # at 10, 20, ..., 190
    assert saved == [65, 130, 195]
    recorder.close()


@OF_ONE
def test_the_speed_of_a_run_resumed_beyond_its_end(script, tmp_path, capsys):
    shared = script.Shared(torch.nn.Linear(3, 1), 1)
    shared.steps += 2000
    recorder = script.Recorder(shared, script.Args(total_timesteps=1000), tmp_path, 0)
    time.sleep(0.01)  # for a rate
    recorder.close()
    line = capsys.readouterr().out
    assert "1000/1000" in line and "-" not in line


@OF_ONE
def test_the_speed_of_a_resumed_run_is_not_that_of_the_steps_before(script, tmp_path):
    shared, logged = script.Shared(torch.nn.Linear(3, 1), 1), []
    shared.steps += 500
    recorder = script.Recorder(shared, script.Args(total_timesteps=1000), tmp_path, 500)
    recorder.log = logged.append
    time.sleep(0.2)  # for a rate
    recorder.close()
    assert not logged  # no step was taken, so there is no speed


@OF_ONE
def test_the_speed_is_the_steps_of_all_workers_per_second(script, tmp_path, monkeypatch):
    args, logged = script.Args(total_timesteps=1000, num_workers=2), []
    recorder = script.Recorder(script.Shared(torch.nn.Linear(3, 1), 2), args, tmp_path, 0)
    start = recorder.bar.start_t
    monkeypatch.setattr(recorder.bar, "_time", lambda: start + 10)
    monkeypatch.setattr(recorder, "log", logged.append)
    recorder.progress(1000, last=True)
    assert logged == [(1000, {"charts/SPS": pytest.approx(100)})]


class NoSpace(Exception):
    """Like the errors of TensorFlow, which TensorBoard writes with where it is installed."""


@OF_TWO
@pytest.mark.parametrize("error", [OSError, NoSpace])
def test_a_log_that_cannot_be_written_does_not_end_the_run(script, tmp_path, monkeypatch, error):
    def fails(writer, *args):
        raise error

    monkeypatch.setattr(script.SummaryWriter, "add_scalar", fails)
    monkeypatch.setattr(script.SummaryWriter, "close", fails)
    assert_usable(train(script, tmp_path, total_timesteps=2000))


@OF_ONE
def test_a_log_goes_on_when_the_disk_has_space_again(script, tmp_path, monkeypatch, capsys):
    args = script.Args(total_timesteps=1000, checkpoint_interval=0)
    recorder = script.Recorder(script.Shared(torch.nn.Linear(3, 1), 1), args, tmp_path, 0)
    monkeypatch.setattr(recorder.writer, "add_scalar", lambda *args: full_disk())
    for step in (1, 2):
        recorder.log((step, {"charts/SPS": 1.0}))
    assert capsys.readouterr().err.count("No space left on device") == 1
    recorder.save_if_due()
    recorder.log((3, {"charts/SPS": 2.0}))
    recorder.writer.close()
    assert scalars(tmp_path, "charts/SPS") == [(3, 2.0)]


@OF_ONE
def test_output_of_any_encoding(script, monkeypatch):
    ascii_output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_output)
    script.show("return 9 ± 1")
    assert ascii_output.buffer.getvalue() == b"return 9 ? 1\n"


@OF_ONE
def test_the_log_is_closed_even_if_the_bar_cannot_be(script, tmp_path, monkeypatch):
    args = script.Args(total_timesteps=1000)
    recorder = script.Recorder(script.Shared(torch.nn.Linear(3, 1), 1), args, tmp_path, 0)
    monkeypatch.setattr(recorder.bar, "close", full_disk)
    closed = []
    monkeypatch.setattr(recorder.writer, "close", lambda: closed.append(True))
    recorder.close()
    assert closed


@OF_ONE
def test_the_log_of_an_episode_does_not_depend_on_its_worker(script):
    # Tensors would be shared with the worker, and gone when it has ended.
    sent = []
    episode = {"r": torch.tensor(2.0), "l": 3}
    script.WorkerLog(sent.append).episode(7, episode)
    ((step, stats),) = sent
    assert step == 7 and [type(value) for value in stats.values()] == [float, float]


@pytest.mark.slow
def test_help_in_any_encoding(script):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, script.__file__, "--help"]
    assert b"--rms-eps" in subprocess.run(command, env=env, capture_output=True, check=True).stdout


@OF_TWO
def test_a_log_that_cannot_be_opened_leaves_no_worker(script, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(script, "SummaryWriter", lambda *args, **kwargs: full_disk())
    with pytest.raises(OSError, match="No space left"):
        train(script, tmp_path, total_timesteps=10**9)
    wait_for(lambda: not mp.active_children())
    assert signal.getsignal(signal.SIGINT) == handler
    (run_dir,) = tmp_path.iterdir()
    assert (run_dir / "checkpoint.pt").exists()


@OF_TWO
def test_an_error_in_main_closes_the_log(script, tmp_path, monkeypatch):
    def fails(recorder):
        if recorder.bar.format_dict["rate"]:  # a speed is logged once there is one
            raise ArithmeticError

    monkeypatch.setattr(script.Recorder, "save_if_due", fails)
    with pytest.raises(ArithmeticError):
        train(script, tmp_path, total_timesteps=10**9)
    (run_dir,) = tmp_path.iterdir()
    assert len(scalars(run_dir, "charts/SPS")) == 1


@OF_TWO
def test_ctrl_c_does_not_cut_the_last_checkpoint_short(script, tmp_path, monkeypatch):
    save = torch.save

    def interrupted_save(*args):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        save(*args)

    monkeypatch.setattr(torch, "save", interrupted_save)
    assert_usable(train(script, tmp_path, total_timesteps=100))


def broken_save(then):
    def save(checkpoint, stream):
        stream.write(b"PK and no more")
        then()

    return save


def full_disk():
    raise OSError(28, "No space left on device")


@OF_ONE
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    script, trained, tmp_path, monkeypatch, capsys
):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    saving = script.Shared(torch.nn.Linear(3, 1), 1), script.Args(), run_dir
    monkeypatch.setattr(torch, "save", broken_save(full_disk))
    assert script.save_checkpoint(*saving) is False
    assert "No space left on device" in capsys.readouterr().err
    process = mp.get_context("fork").Process(target=script.save_checkpoint, args=saving)
    monkeypatch.setattr(torch, "save", broken_save(lambda: os._exit(9)))
    process.start()
    process.join()
    assert process.exitcode == 9
    old, kept = checkpoint(trained)["params"], checkpoint(run_dir)["params"]
    assert all(torch.equal(old[name], tensor) for name, tensor in kept.items())


@OF_FEW
def test_a_run_that_could_not_save_says_so(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "save", broken_save(full_disk))
    train(script, tmp_path, code=1, total_timesteps=100)
    err = capsys.readouterr().err
    assert "No space left on device" in err and "--resume" not in err  # as there is no checkpoint


@OF_ONE
def test_a_full_disk_under_stderr_does_not_end_the_run(script, trained, tmp_path, monkeypatch):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(torch, "save", broken_save(full_disk))
    stderr = SimpleNamespace(write=lambda text: full_disk(), flush=lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        shared = script.Shared(torch.nn.Linear(3, 1), 1)
        assert script.save_checkpoint(shared, script.Args(), run_dir) is False


def test_main_from_python(script, tmp_path):
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers = [signal.getsignal(signum) for signum in signals]
    args = script.Args("CartPole-v1", total_timesteps=2000, num_workers=2, log_dir=str(tmp_path))
    assert script.main(args) is None
    assert [signal.getsignal(signum) for signum in signals] == handlers
    wait_for(lambda: not mp.active_children())
    (run_dir,) = tmp_path.glob(f"CartPole-v1__{script.__name__}__1__*")
    assert sum(value for _, value in scalars(run_dir, "charts/episodic_length")) <= 2000 + 2 * 5


@OF_TWO
def test_main_in_a_thread(script, tmp_path):
    run_dirs = []  # stays empty if train raises
    thread = threading.Thread(
        target=lambda: run_dirs.append(train(script, tmp_path, total_timesteps=500))
    )
    thread.start()
    thread.join(120)
    assert checkpoint(*run_dirs)["steps"].sum() >= 500


def test_a_run_leaves_the_start_method_open(tmp_path):
    # In a program that calls main twice, the second run must start its workers as the first did.
    program = f"""
import multiprocessing, a3c
a3c.main(a3c.Args("CartPole-v1", total_timesteps=100, num_workers=2, log_dir={str(tmp_path)!r}))
print(multiprocessing.get_start_method(allow_none=True))
"""
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines()[-1:] == ["None"], run.stderr


@pytest.mark.parametrize("script", ["onestep_q_async", "sarsa_async", "a2c"], indirect=True)
def test_a_file_alone_runs(script, tmp_path):
    command = [sys.executable, shutil.copy(script.__file__, tmp_path), "--env-id", "CartPole-v1"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["TQDM_DISABLE"] = "1"  # it hides bars, but neither the progress nor the speed
    flags = ["--num-workers", "2", "--total-timesteps", "500"]
    options = dict(cwd=tmp_path, env=env, timeout=120, check=True, capture_output=True, text=True)
    assert "500/500" in subprocess.run([*command, *flags], **options).stdout
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 1


def test_a_file_imports_only_its_requirements(script):
    source = Path(script.__file__).read_text()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    pins = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    header = re.search(r"# /// script\n(.*?)# ///\n", source, re.DOTALL)[1]
    ranges = [Requirement(text) for text in re.findall(r'"([\w-]+>=[^"]+)"', header)]
    assert {needed.name for needed in ranges} == {*pins}
    for needed in ranges:
        assert needed.specifier.contains(pins[needed.name]), needed
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split(".")[0])
    packages = importlib.metadata.packages_distributions()
    for module in modules - sys.stdlib_module_names:
        assert {*pins}.intersection(packages.get(module, [])), module
