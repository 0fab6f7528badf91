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


class Steps:
    """Progress of work that comes again and again: call it before each step with what is done, and of how many."""

    def __init__(self):
        self.bar = None

    def __call__(self, done: int, total: int):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not done or self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
