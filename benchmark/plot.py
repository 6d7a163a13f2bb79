"""Draws the figures of README and docs from the CSVs in benchmark/results.

    python benchmark/plot.py            draws all figures
    python benchmark/plot.py --check    exits with 1 if a figure is older than its data

Where there are several seeds, the line is their mean, and the band reaches from the lowest to the
highest. Each SVG names the digest of its data and settings, which --check compares. Drawing needs
matplotlib.
"""

import csv
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from provenance import RESULTS, ROOT, read

FIGURES = ROOT / "docs" / "figures"
GREY = "#808080"  # readable on white and on black
COLOURS = {
    "a2c.py": "#1b9e77",
    "a3c.py": "#d95f02",
    "nstep_q_async.py": "#7570b3",
    "onestep_q_async.py": "#e7298a",
    "sarsa_async.py": "#66a61e",
}
RETURN = "charts/episodic_return", "mean episodic return"
EXPLAINED = "losses/explained_variance", "explained variance"
CHANGES = {  # runs of benchmark/studies/screening.py: label and colour
    "defaults": ("defaults", "#1b9e77"),
    "init_paper": ("the paper's weights", "#d95f02"),
    "eps_1e-1": ("ε = 0.1", "#7570b3"),
    "g_0": ("g from 0", "#e7298a"),
    "init_paper_g_0": ("the paper's weights, g from 0", "#66a61e"),
    "paper": ("all three undone", GREY),
}


@dataclass
class Curve:
    label: str
    pattern: str  # the files of all seeds, in benchmark/results
    colour: str

    @property
    def files(self) -> list[Path]:
        return sorted(RESULTS.glob(self.pattern))


@dataclass
class Figure:
    name: str
    title: str
    curves: list[Curve]
    panels: list[tuple[str, str]]  # column and label of each
    level: float | None = None  # dashed
    level_label: str = ""
    end: float = float("inf")  # of the horizontal axis, in millions of steps
    legend_below: bool = False  # where the curves leave no room
    each_seed: bool = False  # a line each, not their mean, since the runs differ in length


def scripts(pattern: str) -> list[Curve]:
    """A curve for each script that has data."""
    curves = [
        Curve(script, pattern.format(script.removesuffix(".py")), colour)
        for script, colour in COLOURS.items()
    ]
    return [curve for curve in curves if curve.files]


def published(game: str) -> float:
    lines = (RESULTS / "published.csv").read_text().splitlines()
    (mean,) = (row["mean"] for row in csv.DictReader(lines[1:]) if row["game"] == game)
    return float(mean)


FIGURES_TO_DRAW = [
    *(
        Figure(
            name=game.lower(),
            title=game,
            curves=[
                *scripts(f"{game}NoFrameskip-v4__{{}}__*/curve.csv"),
                Curve("a3c.py, first edition", f"paper_settings/{game.lower()}_a3c.csv", GREY),
            ],
            panels=[RETURN],
            level=published(game),
            level_label="RL Zoo's A2C at 10M",
            legend_below=True,
            each_seed=True,
        )
        for game in ("Breakout", "Pong")
    ),
    Figure(
        name="qbert",
        title="Qbert",
        curves=[
            *scripts("QbertNoFrameskip-v4__{}__*/curve.csv"),
            Curve("a2c.py, images as they are", "images_as_they_are/qbert_a2c_?.csv", "#7570b3"),
        ],
        panels=[RETURN],
        level=published("Qbert"),
        level_label="RL Zoo's A2C at 10M",
        legend_below=True,
    ),
    *(
        Figure(
            name=f"changes_{game.lower()}",
            title=f"{game}: a2c.py with images as they are, and without each change",
            curves=[
                Curve(label, f"screening/{game}_{run}_?.csv", colour)
                for run, (label, colour) in CHANGES.items()
            ],
            panels=[
                ("return", RETURN[1]),
                ("ev", "explained variance"),
                ("spread", "policy's spread over states"),
                ("units_hidden", "hidden units that switch"),
            ],
            legend_below=True,
        )
        for game in ("Breakout", "Pong")
    ),
    Figure(
        name="cartpole",
        title="CartPole-v1, 3 seeds",
        curves=scripts("cartpole/{}__*.csv"),
        panels=[RETURN],
        level=500,
        level_label="the highest possible",
        legend_below=True,
    ),
    Figure(
        name="alpha",
        title="Breakout",
        curves=[
            Curve("a2c.py, α = 0.99", "BreakoutNoFrameskip-v4__a2c__1/curve.csv", "#1b9e77"),
            Curve("a3c.py, α = 0.9994", "BreakoutNoFrameskip-v4__a3c__1/curve.csv", "#d95f02"),
            Curve("a3c.py, α = 0.99", "alpha/breakout_0.99.csv", "#7570b3"),
            Curve("from there, α = 0.9994", "alpha/breakout_0.99_then_0.9994.csv", "#e7298a"),
        ],
        panels=[RETURN],
        end=2.5,
    ),
    *(
        Figure(
            name=f"median_{script}",
            title=f"{script}.py on Pong, two seeds each",
            curves=[
                Curve(
                    "images without their median",
                    f"PongNoFrameskip-v4__{script}__?/curve.csv",
                    "#d95f02",
                ),
                Curve("images as they are", f"images_as_they_are/pong_{script}_?.csv", "#1b9e77"),
            ],
            panels=[RETURN],
            legend_below=True,
            each_seed=True,
        )
        for script in ("a2c", "a3c")
    ),
    Figure(
        name="nstep_pong",
        title="nstep_q_async.py on Pong",
        curves=[
            Curve("defaults", "PongNoFrameskip-v4__nstep_q_async__1/curve.csv", "#e7298a"),
            Curve("images as they are", "nstep_settings/pong_alpha0.9994.csv", "#d95f02"),
            Curve("same, α = 0.99", "nstep_settings/pong_alpha0.99.csv", "#1b9e77"),
            Curve("same, η = 5e-5, gain 1", "nstep_settings/pong_eta5e-5_gain1.csv", "#7570b3"),
        ],
        panels=[RETURN, EXPLAINED],
        legend_below=True,
    ),
    Figure(
        name="nstep_breakout",
        title="nstep_q_async.py on Breakout",
        curves=[
            Curve("defaults", "nstep_settings/breakout_alpha0.9994.csv", "#e7298a"),
            Curve("α = 0.99", "BreakoutNoFrameskip-v4__nstep_q_async__1/curve.csv", "#1b9e77"),
            Curve("η = 5e-5, gain 1", "nstep_settings/breakout_eta5e-5_gain1.csv", "#7570b3"),
        ],
        panels=[RETURN, EXPLAINED],
        legend_below=True,
    ),
    Figure(
        name="metrics_actor_critic",
        title="a2c.py on Breakout",
        curves=[
            Curve("defaults", "BreakoutNoFrameskip-v4__a2c__1/curve.csv", "#1b9e77"),
            Curve("--learning-rate 0.01", "sick/breakout_a2c_eta0.01.csv", "#d95f02"),
        ],
        panels=[
            RETURN,
            ("losses/entropy", "entropy"),
            EXPLAINED,
            ("losses/grad_norm", "norm of the gradient"),
        ],
        end=0.3,
    ),
    Figure(
        name="metrics_value",
        title="nstep_q_async.py on Breakout",
        curves=[Curve("α = 0.99", "BreakoutNoFrameskip-v4__nstep_q_async__1/curve.csv", "#7570b3")],
        panels=[
            RETURN,
            ("losses/q_values", "Q of the actions taken"),
            ("losses/td_loss", "TD loss"),
            ("async/policy_lag", "policy lag in updates"),
        ],
    ),
]


def points(file: Path, column: str) -> dict[float, float]:
    """Steps in millions, and values of a column without its empty cells."""
    rows = read(file)[1]
    return {float(row["step"]) / 1e6: float(row[column]) for row in rows if row[column]}


def digest(figure: Figure) -> str:
    """Of what is drawn, and of how."""
    files = [file for curve in figure.curves for file in curve.files]
    content = [repr(figure).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"".join(content)).hexdigest()


def draw(figure: Figure) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": figure.name, "text.color": GREY, "font.size": 11})
    from matplotlib import pyplot as plt

    columns = min(2, len(figure.panels))
    rows = len(figure.panels) // columns
    height = 2.5 * rows
    if rows == 1:
        height = 3.8 if figure.legend_below else 3.2
    size = (5 * columns, height)
    canvas, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes, (column, label) in zip(grid.flat, figure.panels, strict=True):
        for curve in figure.curves:
            seeds = [points(file, column) for file in curve.files]
            line = {"color": curve.colour, "linewidth": 1.8}
            if figure.each_seed:
                for seed in seeds:
                    name = curve.label if seed is seeds[0] else None
                    axes.plot([*seed], [*seed.values()], label=name, **line)
                continue

            steps = [s for s in sorted(set.intersection(*map(set, seeds))) if s <= figure.end]
            values = np.array([[seed[step] for step in steps] for seed in seeds])
            axes.plot(steps, values.mean(0), label=curve.label, **line)
            if len(seeds) > 1:
                low, high = values.min(0), values.max(0)
                axes.fill_between(steps, low, high, color=curve.colour, alpha=0.2, linewidth=0)
        if figure.level is not None:
            axes.axhline(
                figure.level, color=GREY, linestyle="--", linewidth=1, label=figure.level_label
            )
        axes.set_xlabel("agent steps in millions", color=GREY)
        axes.set_ylabel(label, color=GREY)
        axes.tick_params(colors=GREY)
        for spine in axes.spines.values():
            spine.set_color(GREY)
    canvas.suptitle(figure.title, color=GREY, fontsize=12)
    top = 1 if figure.level is None else 0.92  # clear of the level's line
    style = {"frameon": False, "labelcolor": GREY, "fontsize": 9, "columnspacing": 1}
    if figure.legend_below:
        lines, labels = grid.flat[0].get_legend_handles_labels()
        ncols = columns + 1  # two columns of entries fit under one panel, three under two
        canvas.legend(
            lines, labels, loc="outside lower center", ncols=ncols, handlelength=1.5, **style
        )
    else:
        grid.flat[0].legend(loc="upper left", bbox_to_anchor=(0, top), **style)
    FIGURES.mkdir(exist_ok=True, parents=True)
    metadata = {"Date": None, "Description": f"data: {digest(figure)}"}
    canvas.savefig(FIGURES / f"{figure.name}.svg", transparent=True, metadata=metadata)
    plt.close(canvas)


def is_current(figure: Figure) -> bool:
    file = FIGURES / f"{figure.name}.svg"
    found = re.search(r"data: (\w+)", file.read_text()) if file.exists() else None
    return bool(found) and found[1] == digest(figure)


def main(check: bool = False) -> None:
    if check:
        old = [figure.name for figure in FIGURES_TO_DRAW if not is_current(figure)]
        if old:
            sys.exit(f"older than their data: {', '.join(old)}; run python benchmark/plot.py")
        return
    for figure in FIGURES_TO_DRAW:
        draw(figure)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
