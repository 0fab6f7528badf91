"""A progress bar that Cancel is heard at."""

import comfy.model_management
import comfy.utils


class Progress:
    """Call it with what is done since the last call, out of `total`; raises where the user pressed Cancel."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: int = 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update(done)


class Steps:
    """The same for work that comes again and again: call it before each step with what is done, and of how many."""

    def __init__(self):
        self.bar = None

    def __call__(self, done: int, total: int):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not done or self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
