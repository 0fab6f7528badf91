"""What is measured in pictures beside a reward: a pattern that repeats with the model's patches, and diversity."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithm.metrics import saturation
from ..language import called, names, say
from ..rewards import EmbeddingReward, Reward, name_of
from ..rewards.pixels import as_rgb

PERIODS = (16, 8)  # pixels: FLUX's patch of 2 x 2 places of its latent, and one place, which is also JPEG's block
LEAST_PERIODS = 4  # along a picture's shorter side, to tell a line of the spectrum from its neighbours
FARTHEST = 4  # frequencies on either side of a line that it is compared with; the nearest is the line's own skirt
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
ROUNDING = 1 / 12 / 255**2  # variance of what 8 bits a channel round off
THUMBNAIL = 16  # pixels: the side of what is left of a picture whose colours alone are compared
ABOUT_GRID = (
    "Grid: how much more energy the edges have at every 16 and 8 pixels than at the distances beside; 0 as in photos."
)
ABOUT_CURVATURE = "Curvature: how far these steps from noise to picture bend; 0 is straight, so that few suffice."
ABOUT_FEW_STEPS = "Few-step error: root mean square to the picture of {steps} steps below it; a rise is a loss."
AT_ONCE = 8  # pictures that are embedded together
CURVATURE = "curvature"
FEW_STEP_ERROR = "few-step error"
FINE = (CURVATURE, FEW_STEP_ERROR)  # numbers that are small, with a third decimal
FEW_STEPS = 8  # up to so many are a distilled model's
MEASURES = names("words-gap", "saturation", "diversity")
MEASURES += names("curvature", "few-step error", "grid 16 px", "grid 8 px")


@torch.no_grad()
def grid_pattern(images: Tensor, period: int = 16) -> float | None:
    """How far a pattern that repeats every `period` pixels stands out in pictures (B, 3, H, W) in [0, 1].

    It is the energy of the luminance's differences at the odd multiples of 1 / period, which no shorter period of a
    power of 2 has, over that of the frequencies beside them, minus 1; the mean over those, both directions and all
    pictures. 0: none, as in a photo; 1: twice the energy. Neither brightness nor contrast changes it, nor where the
    pattern begins. None where a side has fewer than LEAST_PERIODS of it.
    (After the blockiness of Wang, Bovik and Evans, "Blind measurement of blocking artifacts in images", 2000.)
    """
    if min(images.shape[-2:]) < LEAST_PERIODS * period:
        return None
    luma = torch.einsum("bchw,c->bhw", images.float(), images.new_tensor(LUMA, dtype=torch.float32))
    return torch.stack([_stands_out(lines, period) for lines in (luma, luma.mT)]).mean().item()


def _stands_out(lines: Tensor, period: int) -> Tensor:
    """(B, multiples): in lines (B, N, L) the energy at odd multiples of 1 / period over that beside them, minus 1."""
    periods = lines.shape[-1] // period
    length = periods * period
    window = torch.hann_window(length, device=lines.device)
    differences = lines.diff(append=lines[..., -1:])[..., :length]
    energy = torch.fft.rfft(differences * window).abs().square().mean(-2)
    energy = energy + 2 * ROUNDING * window.square().sum()  # what no picture of 8 bits shows counts nothing
    at = periods * torch.arange(1, period // 2 + 1, 2, device=lines.device)
    offsets = range(2, min(FARTHEST, periods - 2) + 1)
    beside = [energy[:, at + sign * offset] for offset in offsets for sign in (-1, 1)]
    return energy[:, at] / torch.stack(beside).mean(0) - 1


def diversity(features: Tensor, prompts: Sequence[object]) -> float | None:
    """The mean distance between pictures of one prompt: over all pairs of them, then over the prompts.

    features: (N, D). prompts: which prompt each picture is of. None where no prompt has two pictures.
    """
    pairs = [torch.pdist(features[indices].double()) for indices in _by_prompt(prompts) if len(indices) > 1]
    return torch.stack([distances.mean() for distances in pairs]).mean().item() if pairs else None


def _by_prompt(prompts: Sequence[object]) -> list[list[int]]:
    found: dict[object, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(i)
    return list(found.values())


@torch.inference_mode(False)
@torch.no_grad()
def features_of(images: Tensor, reward: Reward | None, device: torch.device | str = "cpu") -> Tensor:
    """What pictures (N, 3, H, W) are compared by: (N, D) on the CPU.

    A reward that embeds pictures gives its features, of length 1; without one it is the colours of thumbnails, so that
    a distance is a root mean square of [0, 1].
    """
    if isinstance(reward, EmbeddingReward):
        parts = [reward.embed(part.to(device, torch.float32, copy=True)).float() for part in images.split(AT_ONCE)]
        return F.normalize(torch.cat(parts), dim=-1).cpu()
    small = F.interpolate(images.float(), (THUMBNAIL, THUMBNAIL), mode="area").flatten(1).cpu()
    return small / small.shape[1] ** 0.5


def about_diversity(reward: Reward | None) -> str:
    """What `diversity` is of, a sentence."""
    by = f"the image features of {name_of(reward)}" if isinstance(reward, EmbeddingReward) else "their colours at 16x16"
    return f"Diversity: mean distance between the seeds of a prompt, by {by}."


def few_step_error(few: Tensor, many: Tensor) -> Tensor:
    """(N,): the root mean square of the difference between pictures (N, H, W, C) by few steps and by many."""
    return (few.float() - many.float()).flatten(1).square().mean(1).sqrt()


def about_curvature(steps: int) -> str:
    """What to read out of `curvature` where pictures take so many steps; empty where these are not few."""
    if steps > FEW_STEPS:
        return ""
    return say(
        "Curvature is how far the path from noise to picture bends (0 is straight): where training raises it, "
        "pictures of {steps} steps may suffer, which SRPO Compare shows with many_steps.",
        steps=steps,
    )


def measure_pictures(
    images: Tensor,
    prompts: Sequence[object],
    reward: Reward | None = None,
    *,
    device: torch.device | str = "cpu",
    curvature: float | None = None,
) -> dict[str, float]:
    """The numbers of pictures (N, H, W, 3) in [0, 1], by name; those that such pictures have.

    prompts: which prompt each is of. reward: see `features_of`; device: where it is given them. curvature: of their
    paths, where it is known.
    """
    images = as_rgb(images.movedim(-1, 1))
    numbers: dict[str, float | None] = {"saturation": saturation(images).item()}
    if len(set(prompts)) < len(images):
        numbers["diversity"] = diversity(features_of(images, reward, device), prompts)
    numbers[CURVATURE] = curvature
    numbers |= {f"grid {period} px": grid_pattern(images, period) for period in PERIODS}
    return {name: value for name, value in numbers.items() if value is not None}


def shown_number(name: str, value: float) -> str:
    return f"{value:.3f}" if name in FINE else f"{value:.2f}"


def shown_numbers(numbers: Mapping[str, float]) -> str:
    """The numbers in a line."""
    return ", ".join(f"{name} {shown_number(name, value)}" for name, value in numbers.items())


def changed_numbers(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """How the numbers went from before to after, in a line."""
    shared = {name: value for name, value in before.items() if name in after}
    both = [(name, shown_number(name, value), shown_number(name, after[name])) for name, value in shared.items()]
    return ", ".join(f"{called(name, MEASURES)} {was} -> {now}" for name, was, now in both)
