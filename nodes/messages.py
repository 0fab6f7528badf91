"""What SRPO Train says on its node, in words."""

from pathlib import Path

from ..srpo_core.report.compare import plural
from ..srpo_core.run.watch import COMPARED_UPDATES, window_mean
from .open_run import OpenRun


def warning(update: int, reached: dict[str, str], *, stops: bool) -> str:
    """What is said at limits. stops: whether the training ends there."""
    ends = ", so training stopped there" if stops else ""
    return f"At update {update} {'; '.join(reached.values())}{ends}. Look at the pictures."


def update_line(metrics: dict[str, float], made: int, updates: int, seconds: float) -> str:
    """What is said after each update. made: of the `updates` of this session, in so many seconds."""
    left = (updates - made) * seconds / made / 60
    gap = f"words-gap {metrics['words_gap']:+.3f}"
    return f"Update {made} of {updates}, {seconds / made:.1f} s each, about {left:.0f} minutes left: {gap}."


def training_summary(opened: OpenRun, updates: int, seconds: float, lora: Path) -> str:
    """What a session of training did, in words."""
    run = opened.run
    skipped = f", {run.skipped} of them skipped" if run.skipped else ""
    spreads = ", ".join(f"{spread.std:.3g} {name}".strip() for name, spread in run.spreads.items())
    scales = f" Spreads of the rewards: {spreads}." if len(run.spreads) > 1 else ""
    return (
        f"{plural(updates, 'update')} in {seconds / 60:.1f} minutes ({run.updates} in all{skipped}): "
        f"{changes(run.history[-updates:])}. {written(opened, lora)}; the run: srpo/{opened.name}, "
        f"both in the output folder.{scales}"
    )


def stopped(opened: OpenRun, lora: Path | None) -> str:
    """What is kept of a training that was cancelled, or failed. lora: what was written of it, if anything was."""
    run = opened.run
    kept = f"The run srpo/{opened.name} is kept up to update {run.saved}" if run.saved else "No update was finished"
    also = f"; {written(opened, lora)}" if lora else ""
    return f"Stopped. {kept}{also}. The next queue goes on from there."


def written(opened: OpenRun, lora: Path) -> str:
    kind = "Model" if opened.settings.adapter.whole_layers else "LoRA"
    return f"{kind}: {'/'.join(lora.parts[-4:])}" if lora.exists() else f"{kind}: could not be written"


def changes(history: list[dict[str, float]]) -> str:
    """How the words-gap and saturation went, as means over the first and the last updates of this history.

    One update has other words, prompts and noise levels than another, so no two of them are compared.
    """
    count = min(COMPARED_UPDATES, len(history) // 2)
    windows = [history[:count], history[-count:]] if count else [history]
    gap = " -> ".join(f"{window_mean(window, 'words_gap'):+.3f}" for window in windows)
    saturation = " -> ".join(f"{window_mean(window, 'saturation'):.2f}" for window in windows)
    compared = f" (means of the first and the last {plural(count, 'update')})" if count else ""
    return f"words-gap {gap}, saturation {saturation}{compared}"
