"""What nodes hand out and show, as the host takes it."""

import math

import torch
from comfy_api.latest import io, ui


def summary_output() -> io.String.Output:
    """What a node says when it is done, last of its outputs: the front end may clear what stands on the node."""
    return io.String.Output(display_name="summary", tooltip="What the node says at its end, for Preview as Text.")


def preview(image: torch.Tensor, text: str, node: type[io.ComfyNode]) -> dict:
    """The `ui` of an output that shows an IMAGE and a text on the node."""
    return {**ui.PreviewImage(image, cls=node).as_dict(), **ui.PreviewText(text).as_dict()}


def loss_map(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """The finite losses of a run, as the core's LOSS_MAP.

    Its plot divides by their range. Where they are all the same, as of one update, the next larger number is added, so
    near that its axis shows one loss; where none is finite there is nothing but a zero and that.
    """
    losses = [metrics["loss"] for metrics in history if math.isfinite(metrics["loss"])] or [0.0]
    level = min(losses) == max(losses)
    return {"loss": [*losses, math.nextafter(losses[-1], math.inf)] if level else losses}
