"""What an optimisation is worth: agent steps per second on Breakout of a script with one piece of its text replaced.

    python benchmark/variants.py >benchmark/results/variants.csv

The variants do what a script would do without an optimisation, or with one that it does not have. Each round runs all
of them, in turn: a worker alone in this process or, for a2c.py, the script with 16 workers. The ratio is the median
over the rounds of the variant's speed to that of the script as it is in the same round. Run it on an otherwise idle
Linux machine.
"""

import importlib.util
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import speed
import torch
import tyro
from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 400  # agent steps
WRAPPERS = """gym.wrappers.TransformObservation(
            gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env), 4),
            lambda obs: np.ascontiguousarray(np.moveaxis(obs, 0, 2)),
            gym.spaces.Box(0, 255, (84, 84, 4), np.uint8),
        )"""
CLIP = """        grad_norm = nn.utils.get_total_norm([model.grads], error_if_nonfinite=True).item()
        if grad_norm > args.max_grad_norm:
            model.grads.mul_(args.max_grad_norm / grad_norm)
"""
CONV = """            k, s = conv.kernel_size[0], conv.stride[0]
            patches = x.unfold(0, k, s).unfold(1, k, s).permute(0, 1, 3, 4, 2).flatten(2)  # (n, n, k·k·in)
            x = nn.functional.linear(patches, kernel, conv.bias).relu_()  # (n, n, out)
"""
RMSPROP = """        self.square_avg.mul_(alpha).addcmul_(grads, grads, value=1 - alpha)
        self.params.addcmul_(grads, (self.square_avg + eps).rsqrt_(), value=-lr)
"""
BLOCKS = """        vectors = self.params.split(65536), self.square_avg.split(65536), grads.split(65536)
        for p, g, d in zip(*vectors, strict=True):
            g.mul_(alpha).addcmul_(d, d, value=1 - alpha)
            p.addcmul_(d, (g + eps).rsqrt_(), value=-lr)
"""
BACKWARD = """        model.grads.zero_()
        (policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss).backward()
"""
GRAD = """        loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
        parts = torch.autograd.grad(loss, [*model.parameters()])
        parts = [part.permute(0, 2, 3, 1) if part.dim() == 4 else part for part in parts]
        torch.cat([part.flatten() for part in parts], out=model.grads)
"""
TARGET = """        if vars(target).get("refreshed") != int(shared.refreshed):
            target.refreshed = int(shared.refreshed)
            target.params.copy_(shared.target)
"""
VARIANTS = {  # script: {variant: [(text, replacement), ...]}
    "a3c": {
        "Gymnasium's Atari wrappers": [("Atari(env)", WRAPPERS)],
        "convolutions channels first": [("            self.convs.to(memory_format=torch.channels_last)\n", "")],
        "conv() on one image": [
            (CONV, "            x = conv(x[None].permute(0, 3, 1, 2)).relu_().permute(0, 2, 3, 1)[0]\n")
        ],
        "the value while acting": [
            (
                "        probs = self.policy(self.hidden(x.flatten()))",
                "        x = self.hidden(x.flatten())\n        self.value(x)\n        probs = self.policy(x)",
            )
        ],
        "torch.distributions": [
            (".softmax(0).tolist()  # (num_actions,)", ""),
            (
                "random.choices(range(len(probs)), probs)[0]",
                "int(torch.distributions.Categorical(logits=probs).sample())",
            ),
        ],
        "a forward pass for the bootstrap": [
            ("np.stack(segment)", "np.stack(segment[:t])"),
            ("values[t].item()", "model(torch.as_tensor(segment[t])[None])[1].item()"),
        ],
        "norm of each parameter's gradient": [
            (CLIP, "        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm).item()\n")
        ],
        "sqrt and addcdiv": [
            ("addcmul_(grads, (self.square_avg + eps).rsqrt_()", "addcdiv_(grads, (self.square_avg + eps).sqrt_()")
        ],
        "RMSProp in blocks of 256 KiB": [(RMSPROP, BLOCKS)],
        "autograd.grad and cat": [(BACKWARD, GRAD)],
    },
    "nstep_q_async": {"θ⁻ copied only when it has changed": [("        target.params.copy_(shared.target)\n", TARGET)]},
    "a2c": {
        "the workers not in halves": [("([*everyone[::2]], [*everyone[1::2]])", "([*everyone],)")],
        "a learner with two threads": [
            (
                "    torch.set_default_device(args.device)\n",
                "    torch.set_default_device(args.device)\n    torch.set_num_threads(2)\n",
            )
        ],
    },
}


@dataclass
class Args:
    rounds: int = 5
    """rounds"""
    steps: int = 2000
    """agent steps of a worker that are measured"""
    seconds: float = 6.0
    """length of a measurement of a2c.py"""


class Pipe:
    def send(self, message) -> None:
        pass


def worker_rate(file: Path, steps: int) -> float:
    """Agent steps per second of one worker, alone in this process."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    sys.modules[file.stem] = script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    args = script.Args(num_workers=1)
    if hasattr(args, "exploration_steps"):
        args.exploration_steps = 1
    torch.manual_seed(1)
    with script.make_env(args.env_id) as env:
        shared = script.Shared(script.Network(env).params, 1)
    update, marks = shared.rmsprop_update, []

    def watched(*words):
        update(*words)
        made = int(shared.steps.sum())
        if made >= WARM_UP + steps * len(marks) and len(marks) < 2:
            marks.append((made, time.perf_counter()))
            shared.stop.fill_(len(marks) == 2)

    shared.rmsprop_update = watched
    script.worker(0, args, [1], shared, (Pipe(),))
    (first, start), (last, end) = marks
    return (last - first) / (end - start)


def main(args: Args) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for script, variants in VARIANTS.items():
            source = (ROOT / f"{script}.py").read_text()
            for number, (name, pieces) in enumerate({"as it is": [], **variants}.items()):
                text = source
                for old, new in pieces:
                    assert text.count(old) == 1, (script, name, old)
                    text = text.replace(old, new)
                file = Path(folder, f"{script}_{number}.py")
                file.write_text(text)
                rates[script, name] = file, []
        for _ in range(args.rounds):
            for (script, _), (file, values) in rates.items():
                if script == "a2c":
                    command = speed.SCRIPT.format(root=folder, script=file.stem, workers=16)
                    timing = speed.Args(seconds=args.seconds)
                    values.append(speed.rate(timing, [sys.executable, "-c", command]))
                else:
                    values.append(worker_rate(file, args.steps))
    print(f"# machine: {machine()}")
    print(f"# versions: python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {head}")
    flags = f"--rounds {args.rounds} --steps {args.steps} --seconds {args.seconds:g}"
    print(f"# command: python benchmark/variants.py {flags}; Breakout, seed 1")
    print("script,variant,steps_per_second,ratio,lowest_ratio,highest_ratio")
    for (script, name), (_, values) in rates.items():
        ratios = [value / own for value, own in zip(values, rates[script, "as it is"][1], strict=True)]
        row = f"{statistics.median(values):.1f},{statistics.median(ratios):.3f},{min(ratios):.3f},{max(ratios):.3f}"
        print(f"{script},{name},{row}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
