"""Makes a GIF of the first seconds of a recorded episode.

    python a2c.py --evaluate benchmark/results/PongNoFrameskip-v4__a2c__1 --capture-video
    python benchmark/gif.py VIDEO.mp4 docs/figures/pong.gif

The first command leaves its videos in the run's folder, under `videos`.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import cv2
import tyro
from PIL import Image


@dataclass
class Args:
    video: tyro.conf.Positional[Path]
    """an .mp4 that --capture-video has left"""
    gif: tyro.conf.Positional[Path]
    """file to write"""
    seconds: float = 20.0
    """length, in seconds of the video"""
    skip: float = 0.0
    """seconds to leave out at the start"""


def main(args: Args) -> None:
    video = cv2.VideoCapture(str(args.video))
    rate = video.get(cv2.CAP_PROP_FPS)
    images = []
    for index in range(round(rate * (args.skip + args.seconds))):
        ok, frame = video.read()
        if not ok:
            break
        if index >= rate * args.skip:
            colours = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            # Pillow's default method would merge small things, such as Pong's paddles, with the
            # background.
            octree, none = Image.Quantize.FASTOCTREE, Image.Dither.NONE
            images.append(Image.fromarray(colours).quantize(32, method=octree, dither=none))
    args.gif.parent.mkdir(parents=True, exist_ok=True)
    # A GIF counts in hundredths of a second, and no frame rate of a video need be a multiple of it.
    times = [10 * round(100 * index / rate) for index in range(len(images) + 1)]
    durations = [end - start for start, end in itertools.pairwise(times)]  # in ms
    images[0].save(args.gif, save_all=True, append_images=images[1:], duration=durations, loop=0)
    print(f"{args.gif}: {args.gif.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
