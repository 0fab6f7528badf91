"""A training session: what SRPO Train makes, shows and says of a run from one queueing to its end."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import torch
from PIL.Image import Image

from ..srpo_core.language import say
from ..srpo_core.report.card import draw_card, text_on_card, tiled, with_text
from ..srpo_core.report.measures import CURVATURE, about_curvature, changed_numbers
from ..srpo_core.run.loop import train
from ..srpo_core.run.training import Training
from ..srpo_core.run.watch import crossed
from ..srpo_core.run.work import WorkPlan
from .file_metadata import taught_by
from .host.progress import Work, output_of, show_output, show_text
from .messages import stopped, training_summary, update_line, warning
from .open_run import OpenRun
from .photos import replaced
from .previews import Previews, Shown
from .sample_files import SampleFiles
from .watch import STOP, Watch

log = logging.getLogger(__name__)


class Pictures(NamedTuple):
    """samples: (2 * count, H, W, 3) in [0, 1], all before training, then all after. card: both beside the curves.

    summary: what the session did, in words, which also stand on the card; see `text_on_card`.
    """

    samples: torch.Tensor
    card: Image
    summary: str


class Session:
    """Trains a run further, and shows on the node what becomes of it.

    plan: how many updates to make, and when to show samples. node: the id of the node that shows everything. files:
    where pictures are kept. advice: what else its summary says.
    """

    def __init__(
        self,
        opened: OpenRun,
        training: Training,
        *,
        plan: WorkPlan,
        previews: Previews,
        watch: Watch,
        node: str,
        files: SampleFiles,
        advice: str = "",
    ):
        self.advice = advice
        self.opened = opened
        self.training = training
        self.plan = plan
        self.previews = previews
        self.watch = watch
        self.node = node
        self.files = files
        self.measured: dict[str, float] = {}  # of the last samples
        self.shown: Image | None = None
        self.output: dict[str, Any] = {}  # the same, as it was sent
        self.work = Work(plan.until(plan.updates))
        self.started = 0.0

    def run(self) -> Pictures:
        """Make the updates, or fewer where a limit ends them, save what was learned and say how it went.

        What was learned is saved, too, where the user cancels or anything fails. Raises as the core's `train` does.
        """
        run = self.opened.run
        node = self.node
        run.on_trouble = lambda text: show_text(text, node)  # the run outlives the session, and would keep all of it
        self.opened.taught = taught_by(self.training.terms)
        self.previews.on_step = self.work
        self.training.flow.on_step = self.work
        try:
            self._show_before()
            self.started = time.monotonic()
            train(run, self.training, self.plan.updates, self._on_update)
            lora = self._save_lora()
            after = self.previews.now()
        except BaseException:
            self._say_stopped(self._save_lora())
            raise
        self._remember(after.numbers)
        report = partial(self._report, time.monotonic() - self.started, lora)
        left_out = "" if self.plan.first else self.opened.left_out
        before = [*filter(None, [left_out, self.advice])]
        summary = " ".join([*report(), *before])
        card = self._draw_card(after, text_on_card(report, before))
        self.work.reach(self.work.total, self.work.total)
        self._say(summary)
        return Pictures(torch.cat([self.previews.before.images, after.images]), card, summary)

    def _save_lora(self) -> Path | None:
        """The file, if there were updates."""
        return self.opened.save_lora() if self.opened.run.updates > self.plan.first else None

    def _show_before(self):
        """The samples before training, at once: an update may take minutes. A run that goes on shows its last card."""
        self.work.reach(0, self.plan.until(0))
        card = self.files.newest_card() if self.plan.first else None
        if card:
            self._show_picture(card)
        before = self.previews.before.images
        self.files.write_samples("before", before, self.previews.about())
        self.work.reach(self.plan.until(0), self.plan.until(1))
        if not card:
            self._show_picture(tiled(before))

    def _on_update(self, metrics: dict[str, float]) -> bool:
        """Whether the training ends here."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        run = self.opened.run
        every = run.settings.snapshot_every
        if every and metrics["update"] % every == 0:
            self.opened.save_lora()
        made = run.updates - self.plan.first
        before = self.shown
        self._show(made)
        reached = self._reached()
        line = update_line(metrics, made, self.plan.updates, time.monotonic() - self.started)
        if self.shown is before:
            show_output(self.output, self.node)  # once more: a front end that showed another workflow has lost it
        self._say(" ".join(filter(None, [line, reached, *run.troubles])))
        return bool(reached) and self.watch.at_limit == STOP

    def _show(self, made: int):
        """How many of the updates are made, and new samples where they are due."""
        done = self.plan.until(made)
        if made == self.plan.updates:
            self.work.reach(done - self.plan.samples, done)
        elif self.plan.is_due(made):
            self.work.reach(done - self.plan.samples, done)
            now = self.previews.now()
            self._remember(now.numbers)
            self.work.reach(done, self.plan.until(made + 1))
            self._show_picture(self._draw_card(now))
        else:
            self.work.reach(done, self.plan.until(made + 1))

    def _show_picture(self, picture: Image):
        self.shown = picture
        self.output = output_of(picture)
        show_output(self.output, self.node)

    def _reached(self) -> str:
        """The sentence that says which limits the run has crossed; empty if none."""
        run = self.opened.run
        watching = [term.name for term in self.training.terms if not term.weight]
        reached = crossed(run.history, self.watch.limits, watching, run.spreads)
        return warning(run.updates, reached, stops=self.watch.at_limit == STOP) if reached else ""

    def _report(self, seconds: float, lora: Path) -> list[str]:
        """What the session did, in sentences; what there is to say of its beginning comes after these."""
        run = self.opened.run
        text = training_summary(self.opened, run.updates - self.plan.first, seconds, lora)
        broken = replaced(self.training.dataset, self.training.photos)
        samples = say("Samples: {changes}.", changes=changed_numbers(self.previews.before.numbers, self.measured))
        bends = about_curvature(self.previews.samples.sampling.steps) if CURVATURE in self.measured else ""
        return [*filter(None, [text, broken, samples, bends, self._alone(), self._reached(), *run.troubles])]

    def _alone(self) -> str:
        """Why previews are made one at a time, where nothing was said of it at the beginning."""
        return "" if self.previews.alone in self.advice else self.previews.alone

    def _remember(self, numbers: dict[str, float]):
        """The numbers of the samples, also in the run's metrics."""
        self.measured = numbers
        self.opened.run.add_numbers({f"samples {name}": value for name, value in numbers.items()})

    def _draw_card(self, now: Shown, text: str = "") -> Image:
        """Samples before and now, with their numbers, beside the curves; all also files in the run's folder."""
        run = self.opened.run
        previews = self.previews
        title = f"{self.opened.name}, update {run.updates}"
        before = previews.before
        measured = (before.numbers, now.numbers)
        card = draw_card(before.images, now.images, run.history, title, measured=measured, text=text)
        self.files.write_card(card)
        self.files.write_samples(f"{run.updates:06d}", now.images, previews.about())
        return card

    def _say_stopped(self, lora: Path | None):
        """What is kept, also beneath the last picture: front ends from 1.54 on drop a node's text as a queue ends."""
        report = partial(stopped, self.opened, self.plan.updates, lora)
        self._say(report())
        if self.shown:
            with suppress(Exception):  # what stopped it is what is raised
                self._show_picture(with_text(self.shown, text_on_card(lambda: [report()])))

    def _say(self, text: str):
        log.info("%s: %s", self.opened.name, text.replace("\n", " "))
        show_text(text, self.node)
