"""What SRPO Train says on its node, in words."""

from pathlib import Path

from .open_run import OpenRun


def warning(update: int, reached: dict[str, str]) -> str:
    return f"At update {update} {'; '.join(reached.values())}. Look at the pictures."


def training_summary(opened: OpenRun, updates: int, seconds: float, lora: Path) -> str:
    """What a session of training did, in words."""
    run = opened.run
    recent = run.history[-updates:]
    skipped = f", {run.skipped} of them skipped" if run.skipped else ""
    spreads = ", ".join(f"{spread.std:.3g} {name}".strip() for name, spread in run.spreads.items())
    scales = f" Spreads of the rewards: {spreads}." if len(run.spreads) > 1 else ""
    kind = "Model" if opened.settings.adapter.whole_layers else "LoRA"
    written = f"{kind}: {'/'.join(lora.parts[-4:])}" if lora.exists() else f"{kind}: could not be written"
    return (
        f"{updates} updates in {seconds / 60:.1f} minutes ({run.updates} in all{skipped}): words-gap "
        f"{recent[0]['words_gap']:+.3f} -> {recent[-1]['words_gap']:+.3f}, saturation {recent[0]['saturation']:.2f} -> "
        f"{recent[-1]['saturation']:.2f}. {written}; the run: srpo/{opened.name}, "
        f"both in the output folder.{scales}"
    )
