"""What a node shows while it works: a bar, at which Cancel is heard, a text and a picture."""

import logging
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import ui
from PIL import Image
from server import PromptServer

from ...srpo_core.pictures import to_tensor

log = logging.getLogger(__name__)


def show_text(text: str, node: str):
    """Show a text on the node of this id."""
    PromptServer.instance.send_progress_text(text, node)


def output_of(picture: Image.Image) -> dict[str, Any]:
    """The picture as a node's output, in a temporary file; empty where that can't be written."""
    try:
        return ui.PreviewImage(to_tensor(picture)).as_dict()
    except OSError as error:
        log.warning("A picture could not be shown: %s", error)
        return {}


def show_output(output: dict[str, Any], node: str):
    """Show what `output_of` gave on the node of this id, in the place of its output.

    A preview of the bar would stay there beside the output in Nodes 2.0: nothing takes it back.
    """
    if not output:
        return
    server = PromptServer.instance
    told = {"node": node, "display_node": node, "output": output, "prompt_id": server.last_prompt_id}
    server.send_sync("executed", told, server.client_id)


class Progress:
    """Call it with what is done since the last call, out of `total`; raises where the user pressed Cancel."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: int = 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update(done)


class Work:
    """Progress of a training, out of `total` pictures times steps of a sampler, or forwards that are trained.

    What an update takes is only about known beforehand: `reach` sets the bar to what is certain, and until then it
    stays below `limit`.
    """

    def __init__(self, total: int):
        self.total = total
        self.bar = comfy.utils.ProgressBar(total)
        self.done = 0
        self.limit = total

    def __call__(self, pictures: int = 1):
        """One more step of so many pictures; raises where the user pressed Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = min(self.done + pictures, max(self.done, self.limit - 1))
        self.bar.update_absolute(self.done, self.total)

    def reach(self, done: int, limit: int):
        """So much is done, and the next that is certain is `limit`."""
        self.done = done
        self.limit = limit
        self.bar.update_absolute(done, self.total)


class Steps:
    """Progress of work that comes again and again: call it before each step with what is done, and of how many."""

    def __init__(self):
        self.bar = None

    def __call__(self, done: int, total: int):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not done or self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
