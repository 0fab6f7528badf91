"""A run's metrics for TensorBoard, where it is installed."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import writing

log = logging.getLogger(__name__)


@contextmanager
def events(folder: Path, updates: int) -> Iterator[Callable[[dict], None]]:
    """Gives a function that writes the metrics of one update to `folder`; it does nothing without TensorBoard.

    updates: how many the run has made; what an earlier process wrote of later ones is hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed, so the run writes no events for it.")
        yield lambda metrics: None
        return
    with SummaryWriter(str(folder), purge_step=updates + 1) as writer:

        def write(metrics: dict):
            with writing(folder):
                for name, value in metrics.items():
                    if name != "update" and math.isfinite(value):
                        writer.add_scalar(name, value, metrics["update"])

        yield write
