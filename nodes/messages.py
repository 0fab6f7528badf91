"""What SRPO Train and Train Step say on their nodes, in words."""

from collections.abc import Mapping
from pathlib import Path

from ..srpo_core.language import say, say_many
from ..srpo_core.run.watch import COMPARED_UPDATES, window_mean
from .open_run import OpenRun


def warning(update: int, reached: dict[str, str], *, stops: bool) -> str:
    """What is said at limits. stops: whether the training ends there."""
    limits = "; ".join(reached.values())
    if stops:
        return say(
            "At update {update} {limits}, so training stopped there. Look at the pictures.",
            update=update,
            limits=limits,
        )
    return say("At update {update} {limits}. Look at the pictures.", update=update, limits=limits)


def update_line(metrics: dict[str, float], made: int, updates: int, seconds: float) -> str:
    """What is said after each update, in two lines: a node breaks a longer one anywhere, also inside a number.

    made: of the `updates` of this session, in so many seconds.
    """
    each = seconds / made
    told = say(
        "Update {update} ({made} of {updates}): words-gap {gap:+.3f}.",
        update=round(metrics["update"]),
        made=made,
        updates=updates,
        gap=metrics["words_gap"],
    )
    pace = say("{each:.1f} s each{left}.", each=each, left=time_left((updates - made) * each))
    return f"{told}\n{pace}"


def time_left(seconds: float) -> str:
    """How a sentence goes on about what is left, in whole minutes; empty where nothing is."""
    if not seconds:
        return ""
    minutes = round(seconds / 60)
    if not minutes:
        return say(", less than a minute left")
    return say_many(minutes, ", about {count} minute left", ", about {count} minutes left")


def training_summary(opened: OpenRun, updates: int, seconds: float, lora: Path) -> str:
    """What a session of training did, in words."""
    run = opened.run
    did = say_many(
        updates,
        "{count} update in {minutes:.1f} minutes ({total} in all{skipped}): {changes}.",
        "{count} updates in {minutes:.1f} minutes ({total} in all{skipped}): {changes}.",
        minutes=seconds / 60,
        total=run.updates,
        skipped=say(", {skipped} of them skipped", skipped=run.skipped) if run.skipped else "",
        changes=changes(run.history[-updates:]),
    )
    file = written(opened, lora)
    places = say("{lora}; the run: srpo/{name}, in the output folder.", lora=file, name=opened.name)
    spreads = ", ".join(f"{spread.std:.3g} {name}".strip() for name, spread in run.spreads.items())
    scales = say("Spreads of the rewards: {spreads}.", spreads=spreads) if len(run.spreads) > 1 else ""
    return " ".join(filter(None, [did, places, scales]))


def stopped(opened: OpenRun, updates: int, lora: Path | None) -> str:
    """What is kept of a training of `updates` updates that was cancelled, or failed, and what Run makes next.

    lora: what was written of it, if anything was.
    """
    run = opened.run
    kept = say("No update was finished")
    if run.saved:
        kept = say("The run srpo/{name} is kept up to update {saved}", name=opened.name, saved=run.saved)
    kept = "; ".join([kept, written(opened, lora)] if lora else [kept])
    return say_many(
        updates,
        "Stopped. {kept}. Run again makes {count} update from there, to update {end}.",
        "Stopped. {kept}. Run again makes {count} updates from there, to update {end}.",
        kept=kept,
        end=run.saved + updates,
    )


def written(opened: OpenRun, lora: Path) -> str:
    """Where the LoRA is, or the model where whole layers were trained."""
    whole = opened.settings.adapter.whole_layers
    if not lora.exists():
        return say("Model: could not be written") if whole else say("LoRA: could not be written")
    file = "/".join(lora.parts[-4:])
    return say("Model: {file}", file=file) if whole else say("LoRA: {file}", file=file)


def changes(history: list[dict[str, float]]) -> str:
    """How the words-gap and saturation went, as means over the first and the last updates of this history.

    One update has other words, prompts and noise levels than another, so no two of them are compared.
    """
    count = min(COMPARED_UPDATES, len(history) // 2)
    windows = [history[:count], history[-count:]] if count else [history]
    went = say(
        "words-gap {gap}, saturation {saturation}",
        gap=" -> ".join(f"{window_mean(window, 'words_gap'):+.3f}" for window in windows),
        saturation=" -> ".join(f"{window_mean(window, 'saturation'):.2f}" for window in windows),
    )
    if not count:
        return went
    return went + say_many(
        count,
        " (the first and the last update)",
        " (means of the first and the last {count} updates)",
    )


def update_summary(name: str, metrics: Mapping[str, float]) -> str:
    """What Train Step says of an update of the run of this name."""
    gaps = {key.removeprefix("words_gap"): gap for key, gap in metrics.items() if key.startswith("words_gap")}
    return say(
        "Update {update} of {name}: {gaps}, gradient norm {norm:.3g}",
        update=metrics["update"],
        name=name,
        gaps=", ".join(f"{say('words-gap')}{reward} {gap:+.3f}" for reward, gap in gaps.items()),
        norm=metrics["gradient_norm"],
    )
