"""Measures what single lines of a3c.py and a2c.py are worth in speed, by taking each of them out.

    python benchmark/studies/variants.py

A variant is a copy of the script with a few lines replaced. The script and its variants are started
together and play Breakout in turns of one second, as in benchmark/speed.py. Two launches of the
same script differ, whatever the number of turns, so all are launched several times. Writes
benchmark/results/variants.csv and prints a table of medians. It needs an otherwise idle Linux
machine, and takes some ten minutes by default.
"""

import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmark"))
from provenance import header
from speed import spread, take_turns, train

PROBS = """    logits, _ = network(torch.as_tensor(obs)[None])  # (1, num_actions)
    probs = logits[0].softmax(0).tolist()
"""
PROBS_WITH_GRAPH = """    outputs.append(network(torch.as_tensor(obs)[None]))
    probs = outputs[-1][0][0].softmax(0).tolist()
"""
DRAW = """    if math.isnan(probs[0]):  # one NaN makes all of them NaN
        raise FloatingPointError("π is NaN: look for NaN or huge values in observations")
    return action_rng.choices(range(len(probs)), probs)[0]
"""
DRAW_FROM_CATEGORICAL = """    return int(torch.distributions.Categorical(logits=logits).sample())
"""
LEARN = """        logits, values = network(states)  # (t+1, num_actions), (t+1,)
"""
LEARN_FROM_GRAPHS = """        outputs.append(network(states[-1:]))
        logits, values = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        outputs.clear()
"""
PROBS_BY_PRODUCTS = """    x = torch.as_tensor(obs).float() / 255
    x = x - x[::4, ::4].median()
    for conv in network.convs[0], network.convs[2]:
        size, stride = conv.kernel_size[0], conv.stride[0]
        patches = x.unfold(0, size, stride).unfold(1, size, stride).permute(0, 1, 3, 4, 2)
        kernels = conv.weight.permute(0, 2, 3, 1).flatten(1)
        x = nn.functional.linear(patches.flatten(2), kernels, conv.bias).relu_()
    probs = network.policy(network.hidden(x.flatten())).softmax(0).tolist()
"""
FLAT_THETA = {
    "        params = {name: param.detach().clone() for name, param in network.named_parameters()}\n": (
        '        params = {"flat": flatten(network)[0].clone()}\n'
    ),
    "class Shared:\n": """def flatten(network):
    parts = [param.data.as_strided([param.numel()], [1]) for param in network.parameters()]
    params, offset = torch.cat(parts), 0
    grads = torch.zeros_like(params)
    for param in network.parameters():
        view = param.shape, param.stride(), offset
        param.data, param.grad = params.as_strided(*view), grads.as_strided(*view)
        offset += param.numel()
    return params, grads


class Shared:
""",
    "    obs, _ = env.reset(seed=seed)\n\n    while": """    obs, _ = env.reset(seed=seed)
    flat_params, flat_grads = flatten(network)

    while""",
    "        network.load_state_dict(shared.theta)\n": (
        '        flat_params.copy_(shared.theta["flat"])\n'
    ),
    "        grads = torch.autograd.grad(loss, list(network.parameters()))\n": """        flat_grads.zero_()
        loss.backward()
        grads = (flat_grads,)
""",
}
FRAMES = """            screen, reward, terminated, truncated, info = self.env.step(action)
            total_reward += float(reward)
            screens.append(np.array(screen))  # a copy: a wrapper may reuse its array
            if terminated or truncated:
                break
"""
FRAMES_FROM_EMULATOR = """            total_reward += self.ale.act(self.unwrapped._action_set[action])
            if _ >= 2:
                screens.append(self.ale.getScreenGrayscale())
        terminated, truncated, info = self.ale.game_over(), self.ale.game_truncated(), {}
"""

IN_PLACE = """            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, kernel_size=4, stride=2),
            nn.ReLU(inplace=True),
"""
NEW_TENSORS = {
    IN_PLACE: IN_PLACE.replace("inplace=True", ""),
    "x /= 255": "x = x / 255",
    "x -= background": "x = x - background",
}

DIVISION = "addcdiv_(grad, (g + eps).sqrt_(), value=-lr)"
INVERSE_ROOT = "addcmul_(grad, (g + eps).rsqrt_(), value=-lr)"

# What the first edition of a3c.py did in other ways.
FIRST_EDITION = {
    "acting by matrix products": {PROBS: PROBS_BY_PRODUCTS},
    "θ in one vector": FLAT_THETA,
    "frames from the emulator": {FRAMES: FRAMES_FROM_EMULATOR},
    "times the inverse root": {DIVISION: INVERSE_ROOT},
}
ALL_OF_FIRST_EDITION = {
    old: new for replacements in FIRST_EDITION.values() for old, new in replacements.items()
}

# Script, number of workers, name of the variant, {text: its replacement}.
VARIANTS = [
    (
        "a3c",
        1,
        "actions from torch.distributions",
        {"    probs = logits[0].softmax(0).tolist()\n": "", DRAW: DRAW_FROM_CATEGORICAL},
    ),
    ("a3c", 1, "no_grad, not inference_mode", {"@torch.inference_mode()": "@torch.no_grad()"}),
    (
        "a3c",
        1,
        "the graphs of acting kept, no second pass",
        {
            PROBS: PROBS_WITH_GRAPH,
            LEARN: LEARN_FROM_GRAPHS,
            "@torch.inference_mode()\ndef act": "outputs: list[tuple[Tensor, Tensor]] = []\n\n\ndef act",
        },
    ),
    (
        "a3c",
        1,
        "weights in PyTorch's default layout",
        {"network.to(memory_format=torch.channels_last)": "network"},
    ),
    ("a3c", 1, "a new tensor for each step of the network", NEW_TENSORS),
    (
        "a3c",
        1,
        "RGB screens, converted by Gymnasium",
        {
            '"obs_type": "grayscale"}': '"obs_type": "rgb"}',
            "env = gym.make(env_id, **kwargs)": "env = gym.wrappers.GrayscaleObservation(gym.make(env_id, **kwargs))",
        },
    ),
    (
        "a3c",
        2,
        "as many threads as cores in each worker",
        {
            "    seed_generators(seed)\n    # SIGINT": "    seed_generators(seed)\n"
            "    torch.set_num_threads(os.cpu_count() or 1)\n    # SIGINT"
        },
    ),
    (
        "a2c",
        16,
        "weights in PyTorch's default layout",
        {"network.to(memory_format=torch.channels_last)": "network"},
    ),
    ("a2c", 16, "a new tensor for each step of the network", NEW_TENSORS),
    (
        "a2c",
        16,
        "one thread in the coordinator",
        {"torch.set_num_threads(min(args.num_workers, num_cores()))": "None"},
    ),
]
VARIANTS += [
    ("a3c", 1, f"{way}, as in the first edition", replacements)
    for way, replacements in FIRST_EDITION.items()
]
VARIANTS.append(("a3c", 1, "all four ways of the first edition", ALL_OF_FIRST_EDITION))


@dataclass
class Args:
    out: Path = ROOT / "benchmark" / "results" / "variants.csv"
    """CSV to write"""
    launches: int = 5
    """launches of each"""
    rounds: int = 5
    """turns of each after a launch"""


def rewrite(script: str, replacements: dict[str, str]) -> str:
    """The script's text with each text replaced, which must be in it once."""
    text = (ROOT / f"{script}.py").read_text()
    for old, new in replacements.items():
        assert text.count(old) == 1, f"{script}.py has changed: {old!r} is in it {text.count(old)}×"
        text = text.replace(old, new)
    return text


def command(script: str, workers: int, replacements: dict[str, str], folder: Path) -> list[str]:
    """A command that runs the script with the texts replaced, from a copy in the folder."""
    folder.mkdir()
    (folder / f"{script}.py").write_text(rewrite(script, replacements))
    return train(script, workers, folder)


def main(args: Args) -> None:
    groups: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
    for script, workers, name, replacements in VARIANTS:
        groups.setdefault((script, workers), {"as it is": {}})[name] = replacements

    with args.out.open("w", newline="") as file, tempfile.TemporaryDirectory() as temporary:
        flags = f"--launches {args.launches} --rounds {args.rounds}"
        file.write(header(f"python benchmark/studies/variants.py {flags}"))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("script", "workers", "variant", "launch", "round", "steps_per_second"))
        print("| | workers | variant | steps per second | to the script as it is |")
        print("|---|---|---|---|---|")
        for (script, workers), variants in groups.items():
            commands: dict = {}
            for i, (name, replacements) in enumerate(variants.items()):
                folder = Path(temporary) / f"{script}_{workers}_{i}"
                commands[name] = command(script, workers, replacements, folder)
            rates: dict[str, list[float]] = {name: [] for name in commands}
            for launch in range(args.launches):
                of_launch = take_turns(commands, args.rounds, seconds=1.0)
                for name, of_variant in of_launch.items():
                    rates[name] += of_variant
                    for turn, rate in enumerate(of_variant):
                        row = f"{script}.py", workers, name, launch, turn, f"{rate:.1f}"
                        writer.writerow(row)

            for name, of_variant in rates.items():
                pairs = zip(of_variant, rates["as it is"], strict=True)
                ratio = spread([one / other for one, other in pairs], 2)
                cells = f"{script}.py", str(workers), name, spread(of_variant, 0), ratio
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
