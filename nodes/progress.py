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
