"""A training session: what SRPO Train makes, shows and says of a run from one queueing to its end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import torch
from PIL.Image import Image

from ..srpo_core.report.card import draw_card, tiled
from ..srpo_core.run.loop import train
from ..srpo_core.run.training import Training
from ..srpo_core.run.watch import crossed
from .host.progress import show_text
from .messages import stopped, training_summary, update_line, warning
from .open_run import OpenRun
from .photos import replaced
from .previews import Previews
from .watch import STOP, Watch

log = logging.getLogger(__name__)


class Pictures(NamedTuple):
    """samples: (2 * count, H, W, 3) in [0, 1], all before training, then all after. card: both beside the curves.

    summary: what the session did, in words, which also stand on the card.
    """

    samples: torch.Tensor
    card: Image
    summary: str


class Session:
    """Trains a run further, and shows on the node what becomes of it.

    updates: how many more to make. preview_every: updates between two of its pictures. node: the id of the node that
    shows everything. advice: what else its summary says.
    """

    def __init__(
        self,
        opened: OpenRun,
        training: Training,
        *,
        updates: int,
        previews: Previews,
        preview_every: int,
        watch: Watch,
        node: str,
        advice: str = "",
    ):
        self.advice = advice
        self.opened = opened
        self.training = training
        self.updates = updates
        self.previews = previews
        self.preview_every = preview_every
        self.watch = watch
        self.node = node
        self.first = opened.run.updates
        self.bar = comfy.utils.ProgressBar(updates)
        self.started = 0.0

    def run(self) -> Pictures:
        """Make the updates, or fewer where a limit ends them, save what was learned and say how it went.

        What was learned is saved, too, where the user cancels or anything fails. Raises as the core's `train` does.
        """
        run = self.opened.run
        self.started = time.monotonic()
        node = self.node
        run.on_trouble = lambda text: show_text(text, node)  # the run outlives the session, and would keep all of it
        self._show(0, tiled(self.previews.before))  # an update may take minutes
        try:
            train(run, self.training, self.updates, self._on_update)
            lora = self._save_lora()
            after = self.previews.now()
        except BaseException:
            self._say(stopped(self.opened, self._save_lora()))
            raise
        summary = self._report(time.monotonic() - self.started, lora)
        card = self._draw_card(after, summary)
        self._show(self.updates, card)  # else the node goes on to show the last preview
        self._say(summary)
        return Pictures(torch.cat([self.previews.before, after]), card, summary)

    def _save_lora(self) -> Path | None:
        """The file, if there were updates."""
        return self.opened.save_lora() if self.opened.run.updates > self.first else None

    def _on_update(self, metrics: dict[str, float]) -> bool:
        """Whether the training ends here."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        run = self.opened.run
        every = run.settings.snapshot_every
        if every and metrics["update"] % every == 0:
            self.opened.save_lora()
        made = run.updates - self.first
        due = run.updates % self.preview_every == 0 and made < self.updates
        self._show(made, self._draw_card(self.previews.now()) if due else None)
        reached = self._reached()
        line = update_line(metrics, made, self.updates, time.monotonic() - self.started)
        self._say(" ".join(filter(None, [line, reached, *run.troubles])))
        return bool(reached) and self.watch.at_limit == STOP

    def _reached(self) -> str:
        """The sentence that says which limits the run has crossed; empty if none."""
        run = self.opened.run
        watching = [term.name for term in self.training.terms if not term.weight]
        reached = crossed(run.history, self.watch.limits, watching, run.spreads)
        return warning(run.updates, reached, stops=self.watch.at_limit == STOP) if reached else ""

    def _report(self, seconds: float, lora: Path) -> str:
        run = self.opened.run
        text = training_summary(self.opened, run.updates - self.first, seconds, lora)
        text += replaced(self.training.dataset, self.training.photos)
        left_out = "" if self.first else self.opened.left_out
        return " ".join(filter(None, [text, self._reached(), *run.troubles, left_out, self.advice]))

    def _draw_card(self, now: torch.Tensor, summary: str = "") -> Image:
        """Samples before and now beside the curves; also a file in the run's folder."""
        run = self.opened.run
        title = f"{self.opened.name}, update {run.updates}"
        card = draw_card(self.previews.before, now, run.history, title, text=summary)
        file = run.folder / "samples" / f"{run.updates:06d}.png"
        run.write_aside(file, lambda path: card.save(path, "PNG"))
        return card

    def _show(self, made: int, card: Image | None):
        """How many of the updates are made, and a picture if there is one."""
        self.bar.update_absolute(made, self.updates, ("JPEG", card, None) if card else None)

    def _say(self, text: str):
        log.info("%s: %s", self.opened.name, text)
        show_text(text, self.node)
