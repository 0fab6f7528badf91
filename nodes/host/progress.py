"""What a node shows while it works: a bar, at which Cancel is heard, and a text."""

import comfy.model_management
import comfy.utils
from server import PromptServer


def show_text(text: str, node: str):
    """Show a text on the node of this id."""
    PromptServer.instance.send_progress_text(text, node)


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

    def reach(self, done: int, limit: int, preview: tuple | None = None):
        """So much is done, and the next that is certain is `limit`. preview: a picture as the host's bar takes it."""
        self.done = done
        self.limit = limit
        self.bar.update_absolute(done, self.total, preview)


class Steps:
    """Progress of work that comes again and again: call it before each step with what is done, and of how many."""

    def __init__(self):
        self.bar = None

    def __call__(self, done: int, total: int):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not done or self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
