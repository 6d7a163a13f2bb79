"""Draws the figures of README and docs from the CSVs in benchmark/results.

    python benchmark/plot.py            draws all figures
    python benchmark/plot.py --check    exits with 1 if a figure is older than its data

Each SVG names the digest of its data, which --check compares; drawing needs matplotlib.
"""

import csv
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
FIGURES = ROOT / "docs" / "figures"
GREY = "#808080"  # readable on white and on black


@dataclass
class Figure:
    name: str
    game: str
    curves: dict[str, tuple[str, str]]  # label: file, colour
    level: float  # published return after 10 million steps, dashed
    level_label: str
    column: str = "charts/episodic_return"
    label: str = "mean episodic return"


FIGURES_TO_DRAW = [
    Figure(
        name=game.lower(),
        game=game,
        curves={
            "a2c.py": (f"{game}NoFrameskip-v4__a2c__1/curve.csv", "#1b9e77"),
            "a3c.py": (f"{game}NoFrameskip-v4__a3c__1/curve.csv", "#d95f02"),
            "a3c.py, paper's settings": (f"paper_settings/{game.lower()}_a3c.csv", "#7570b3"),
        },
        level=level,
        level_label="RL Zoo's A2C at 10M",
    )
    for game, level in (("Breakout", 279.8), ("Pong", 17.3))
]


def read(file: Path, column: str) -> tuple[list[float], list[float]]:
    """Steps and values of a column, without the comment lines and the empty cells."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines) if row[column]]
    return [float(row["step"]) / 1e6 for row in rows], [float(row[column]) for row in rows]


def digest(figure: Figure) -> str:
    files = [RESULTS / file for file, _ in figure.curves.values()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def draw(figure: Figure) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": figure.name, "text.color": GREY, "font.size": 11})
    from matplotlib import pyplot as plt

    canvas, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for label, (file, colour) in figure.curves.items():
        axes.plot(*read(RESULTS / file, figure.column), color=colour, label=label, linewidth=1.8)
    axes.axhline(figure.level, color=GREY, linestyle="--", linewidth=1, label=figure.level_label)
    axes.set_title(figure.game, color=GREY)
    axes.set_xlabel("agent steps in millions", color=GREY)
    axes.set_ylabel(figure.label, color=GREY)
    axes.tick_params(colors=GREY)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    axes.legend(frameon=False, labelcolor=GREY, fontsize=9)
    FIGURES.mkdir(exist_ok=True, parents=True)
    metadata = {"Date": None, "Description": f"data: {digest(figure)}"}
    canvas.savefig(FIGURES / f"{figure.name}.svg", transparent=True, metadata=metadata)
    plt.close(canvas)


def is_current(figure: Figure) -> bool:
    file = FIGURES / f"{figure.name}.svg"
    found = re.search(r"data: (\w+)", file.read_text()) if file.exists() else None
    return bool(found) and found[1] == digest(figure)


def main() -> None:
    if "--check" in sys.argv:
        old = [figure.name for figure in FIGURES_TO_DRAW if not is_current(figure)]
        if old:
            sys.exit(f"older than their data: {', '.join(old)}; run python benchmark/plot.py")
        return
    for figure in FIGURES_TO_DRAW:
        draw(figure)


if __name__ == "__main__":
    main()
