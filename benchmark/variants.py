"""What an optimisation is worth: agent steps per second on Breakout of a script with one piece of its text replaced.

    python benchmark/variants.py >benchmark/results/variants.csv

The variants do what a script would do without an optimisation, or with one that it does not have. They take turns, as
in speed.py: the asynchronous scripts with one worker, a2c.py with 16. A ratio is of a variant's turn to that of the
script as it is in the same round; median, and the middle half. Run it on an otherwise idle Linux machine.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import speed
import tyro
from curve import PACKAGES, machine, version

ROOT = Path(__file__).resolve().parent.parent
WRAPPERS = """gym.wrappers.TransformObservation(
            gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env), 4),
            lambda obs: np.ascontiguousarray(np.moveaxis(obs, 0, 2)),
            gym.spaces.Box(0, 255, (84, 84, 4), np.uint8),
        )"""
NORM = "model.grads.dot(model.grads).sqrt().item()"
CLIP = """        grad_norm = model.grads.dot(model.grads).sqrt().item()
        assert grad_norm < np.inf, f"the gradient's norm is {grad_norm}: look for NaN in rewards and observations"
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
PROBS = "        probs = self.policy(self.hidden(x.flatten())).softmax(0).tolist()  # (num_actions,)\n"
KEPT = """        x = self.hidden(x.flatten())
        self.kept.append((self.policy(x), self.value(x)))
        probs = self.kept[-1][0].detach().softmax(0).tolist()
"""
PASS = "        logits, values = model(torch.as_tensor(np.stack(segment)))  # (t+1, num_actions), (t+1,)\n"
STACKED = """        logits, values = (torch.stack(outputs) for outputs in zip(*model.kept))
        with torch.no_grad():
            last = model(torch.as_tensor(segment[t])[None])[1]
        values = torch.cat([values[:, 0], last])
"""
HALVES = "b11a1d5"  # the last commit whose a2c.py has a learner that acts, for half of the workers at a time
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
        "the graphs of acting instead of a pass over the segment": [
            ("    @torch.inference_mode()\n    def act", "    def act"),
            ("conv.weight.data.permute(0, 2, 3, 1).flatten(1)", "conv.weight.permute(0, 2, 3, 1).flatten(1)"),
            ("relu_()  # (n, n, out)", "relu()"),
            (PROBS, KEPT),
            ("        updates_before = ", "        model.kept = []\n        updates_before = "),
            (PASS, STACKED),
        ],
        "norm of each parameter's gradient": [
            (CLIP, "        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm).item()\n")
        ],
        "get_total_norm": [(NORM, "nn.utils.get_total_norm([model.grads], error_if_nonfinite=True).item()")],
        "sqrt and addcdiv": [
            ("addcmul_(grads, (self.square_avg + eps).rsqrt_()", "addcdiv_(grads, (self.square_avg + eps).sqrt_()")
        ],
        "RMSProp in blocks of 256 KiB": [(RMSPROP, BLOCKS)],
        "autograd.grad and cat": [(BACKWARD, GRAD)],
    },
    "nstep_q_async": {
        "θ⁻ copied for each segment": [
            ("Network(env, shared.target)", "Network(env)"),
            ("Snapshot: θ' ← θ\n", "Snapshot: θ' ← θ\n        target.params.copy_(shared.target)\n"),
        ]
    },
    "a2c": {
        "the learner acting for half of the workers at a time": HALVES,
        "θ copied by each worker": [
            ("Network(env, shared.params)", "Network(env)"),
            ("        # Act: up to", "        model.params.copy_(shared.params)\n        # Act: up to"),
        ],
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
    rounds: int = 30
    """turns of each"""
    seconds: float = 1.0
    """length of a turn"""


def git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=True).stdout


def main(args: Args) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for script, variants in VARIANTS.items():
            commands = {}
            for number, (name, change) in enumerate({"as it is": [], **variants}.items()):
                text = git("show", f"{change}:{script}.py") if change == HALVES else (ROOT / f"{script}.py").read_text()
                for old, new in [] if change == HALVES else change:
                    assert text.count(old) == 1, (script, name, old)
                    text = text.replace(old, new)
                file = Path(folder, f"{script}_{number}.py")
                file.write_text(text)
                workers = 16 if script == "a2c" else 1
                code = speed.SCRIPT.format(root=folder, script=file.stem, workers=workers)
                commands[name] = [sys.executable, "-c", code]
            rates = speed.take_turns(commands, args.rounds, args.seconds)
            for name, values in rates.items():
                ratios = [value / own for value, own in zip(values, rates["as it is"], strict=True)]
                quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
                low, middle, high = (f"{quartile:.3f}" for quartile in quartiles)
                rows.append(f"{script},{name},{statistics.median(values):.1f},{middle},{low},{high}")
    print(f"# machine: {machine()}")
    print(f"# versions: python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
    print(f"# commit: {git('rev-parse', 'HEAD').strip()}")
    flags = f"--rounds {args.rounds} --seconds {args.seconds:g}"
    print(f"# command: python benchmark/variants.py {flags}; Breakout, seed 1")
    print("script,variant,steps_per_second,ratio,lower_quartile,upper_quartile")
    print("\n".join(rows))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
