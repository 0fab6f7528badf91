"""A run's metrics for TensorBoard, where it is installed."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def events(
    folder: Path, updates: int, on_trouble: Callable[[str], Any] = log.warning
) -> Iterator[Callable[[dict], None]]:
    """Gives a function that writes the metrics of one update to `folder`; it does nothing without TensorBoard.

    updates: how many the run has made; what an earlier process wrote of later ones is hidden.
    on_trouble: told, in a sentence, when events can't be written; from then on none are.
    """
    writer = _writer(folder, updates, on_trouble)

    def write(metrics: dict):
        nonlocal writer
        if writer is None:
            return
        try:
            for name, value in metrics.items():
                if name != "update" and math.isfinite(value):
                    writer.add_scalar(name, value, metrics["update"])
        except Exception as error:  # whatever its thread met, which tells nothing of the training
            on_trouble(f"TensorBoard's {folder} can't be written to any more ({error}); training goes on without.")
            writer = None

    try:
        yield write
    finally:
        if writer is not None:
            _close(writer, folder, on_trouble)


def _writer(folder: Path, updates: int, on_trouble: Callable[[str], Any]) -> Any:
    """A SummaryWriter, or None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed, so the run writes no events for it.")
        return None
    try:
        return SummaryWriter(str(folder), purge_step=updates + 1)
    except Exception as error:  # of its own kinds
        on_trouble(f"TensorBoard's {folder} can't be written to ({error}); training goes on without.")
        return None


def _close(writer: Any, folder: Path, on_trouble: Callable[[str], Any]):
    try:
        writer.close()
    except Exception as error:
        on_trouble(f"TensorBoard's {folder} can't be written to any more ({error}); its last lines are missing.")
