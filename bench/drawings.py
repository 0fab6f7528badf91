"""The pictures in docs/ that explain Direct-Align, made with the toy models.

    python -m bench.drawings --folder docs

recovery_sweep.jpg: a sample of the toy over the noise levels, with the noise that it came from.
recovery_sweep_photo.jpg: a photo, with a noise.
direct_align.png: one training step as a drawing, with what the toy makes of that photo.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.sweep import Question
from srpo_core.algorithm.terms import Term
from srpo_core.report.sheet import FAINT, INK, SIDES
from srpo_core.report.sweep import Sweep, make_sweep
from srpo_core.report.sweep_picture import draw_sweep
from srpo_core.toy import models
from srpo_core.toy.pictures import draw_photo, parse, to_tensor
from srpo_core.toy.world import World, toy_world

PROMPT = "a yellow star on wood"
SAMPLED = 6  # the seed of the sample's noise
PHOTO = 4  # and of the photo and its noise
SHAPE = (1, 16, 8, 8)
LEVELS = 9
SHOWN = 2  # the column in the drawing: in the noisy half of the window
WIDTH = 1200  # pixels of the sweeps
BLUE = SIDES["positive"]
ORANGE = SIDES["negative"]
PALE = "#f3f5f8"


class Place(NamedTuple):
    """A square picture in the drawing: its middle and its side, in units of the drawing."""

    x: float
    y: float
    side: float = 2.0


def noise_of(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def sweep_of(world: World, x0: Tensor, seed: int) -> Sweep:
    """The picture with the noise of this seed, asked as the first update of the published objective asks."""
    flow, decoder, reward, prompts = world
    question = Question(term=Term(reward=reward, objective=Objective()), prompt=PROMPT, seed=seed)
    given = {"cond": prompts.cond([0]), "window": Window(), "count": LEVELS, "question": question, "gradient": True}
    return make_sweep(flow, decoder, x0, noise_of(seed), **given)


def photo_latent() -> Tensor:
    """A photo as the toy world draws it, encoded."""
    picture = to_tensor(draw_photo(parse(PROMPT), np.random.default_rng(PHOTO)))
    with torch.no_grad():
        return models.load_vae().encode(picture[None] * 2 - 1).latents


def save_sweep(sweep: Sweep, title: str, path: Path):
    picture = draw_sweep(sweep, title)
    picture.resize((WIDTH, round(picture.height * WIDTH / picture.width))).save(path, quality=88)


def show(axes: Axes, image: Tensor, place: Place, text: str, *, colour: str = INK):
    """An image (3, H, W) in [0, 1] with a text below it."""
    x, y, side = place
    reach = side / 2
    axes.imshow(image.movedim(0, -1).numpy(), extent=(x - reach, x + reach, y - reach, y + reach), zorder=2)
    write(axes, (x, y - reach - 0.32), text, color=colour, weight="bold")


def write(axes: Axes, at: tuple[float, float], text: str, **style: Any):
    axes.text(*at, text, **{"ha": "center", "va": "center", "fontsize": 11, "color": INK, **style})


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: Any):
    line = {"arrowstyle": "-|>", "color": INK, "lw": 1.8, "mutation_scale": 16, **style}
    axes.annotate("", end, start, arrowprops=line, zorder=1)


def box(axes: Axes, at: tuple[float, float], text: str, colour: str):
    frame = {"boxstyle": "round,pad=0.7", "facecolor": PALE, "edgecolor": colour, "linewidth": 1.8}
    write(axes, at, text, bbox=frame, linespacing=1.5, zorder=3)


def draw_stages(axes: Axes, sweep: Sweep, noise: Tensor):
    """From the clean picture to what the two ways make of it."""
    sigma = sweep.sigmas[SHOWN]
    gain = sweep.levels[SHOWN].branch.error_gain.item()
    show(axes, sweep.clean.image, Place(1.3, 4.9), "a clean picture x0")
    show(axes, noise, Place(1.3, 1.5), "noise n, kept", colour=FAINT)
    show(axes, sweep.noised[SHOWN].image, Place(5.0, 4.9), f"x: {sigma:.0%} noise")
    show(axes, sweep.plain[SHOWN].image, Place(12.6, 4.9), f"model's error x {sigma:.2f}", colour=ORANGE)
    show(axes, sweep.recovered[SHOWN].image, Place(12.6, 1.5), f"model's error x {gain:.2f}", colour=BLUE)
    box(axes, (8.3, 4.9), "FLUX\nwith its adapter\nsays v", INK)
    box(axes, (8.3, 1.5), "a short step by v,\nthen take out n", BLUE)


def draw_arrows(axes: Axes):
    arrow(axes, (2.4, 4.9), (3.9, 4.9))
    arrow(axes, (2.4, 2.2), (3.9, 4.1))
    write(axes, (3.15, 5.2), "1. inject", fontsize=10)
    arrow(axes, (6.1, 4.9), (7.25, 4.9))
    arrow(axes, (9.35, 4.9), (11.5, 4.9), color=ORANGE)
    write(axes, (10.4, 5.4), "plain: all the way\ndown by v", fontsize=10, color=ORANGE)
    arrow(axes, (8.3, 4.2), (8.3, 2.1), color=BLUE)
    write(axes, (8.5, 3.1), "2. step", fontsize=10, color=BLUE, ha="left")
    arrow(axes, (2.4, 1.5), (7.1, 1.5), color=FAINT)
    arrow(axes, (9.5, 1.5), (11.5, 1.5), color=BLUE)
    write(axes, (10.45, 1.78), "3. recover", fontsize=10, color=BLUE)


def draw_reward(axes: Axes, sweep: Sweep):
    """What the reward reads of the recovered picture, and the way back."""
    positive, negative = (values[1, SHOWN].item() for values in sweep.rewards)
    box(
        axes,
        (16.35, 1.5),
        f'4. the reward reads\n"Detail. {PROMPT}"\n{positive:.3f}\n"Painting. {PROMPT}"\n{negative:.3f}',
        BLUE,
    )
    arrow(axes, (13.7, 1.5), (14.5, 1.5), color=BLUE)
    axes.plot([16.35, 16.35, 8.3], [2.55, 6.75, 6.75], color=INK, linestyle=(0, (4, 3)), lw=1.8)
    arrow(axes, (8.3, 6.75), (8.3, 5.6))
    write(axes, (12.3, 7.05), "5. update: the gradient, towards one word and away from the other, to the adapter")


def draw_step(sweep: Sweep, noise: Tensor) -> Figure:
    """One training step: what goes where, with the toy's own pictures and numbers."""
    figure = Figure((14, 5.6), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    draw_stages(axes, sweep, noise)
    draw_arrows(axes)
    draw_reward(axes, sweep)
    axes.set(xlim=(0, 18.6), ylim=(-0.1, 7.34), aspect="equal")
    axes.set_axis_off()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where the pictures go")
    folder = parser.parse_args().folder
    world = toy_world([PROMPT])
    flow, decoder, _, prompts = world
    sample = flow.rollout(noise_of(SAMPLED), prompts.cond([0]), seed=SAMPLED)
    save_sweep(sweep_of(world, sample, SAMPLED), PROMPT, folder / "recovery_sweep.jpg")
    photo = sweep_of(world, photo_latent(), PHOTO)
    save_sweep(photo, f"A photo: {PROMPT}", folder / "recovery_sweep_photo.jpg")
    noise = decoder.decode(noise_of(PHOTO)).value[0].clamp(0, 1)
    FigureCanvasAgg(draw_step(photo, noise)).print_png(folder / "direct_align.png")


if __name__ == "__main__":
    main()
