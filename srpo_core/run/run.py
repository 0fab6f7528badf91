"""A training run: one update after another, resumable after each."""

import json
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from ..algorithm.metrics import Summary, describe, summarise
from ..algorithm.step import Score
from ..algorithm.terms import Spread
from ..checks import check_whole
from ..files import check_writable, write_whole
from .folder import METRICS, STATE, FolderGone, FolderLock, newest_state, snapshot_file, snapshots_in
from .history import history_text, read_history, recent_words_gap
from .optimizers import check_optimizer_state, learning_rate_factor, make_optimizer, optimizer_state, restore_optimizer
from .score_checks import check_belongs, check_reached
from .settings import DEFAULT, Settings
from .state_file import COUNTS, VERSION, NewerState, SpoiltState, State, described, read_state, spreads_of

log = logging.getLogger(__name__)

MOST_COPIED = 8 * 2**30  # bytes of state that are copied before each step: of a large LoRA, not of a whole model
MOST_IN_PLACE = 2**30  # of these, on their device: of FLUX's LoRA of rank 16, less than what a branch just freed there
MAX_SKIPPED = 10  # updates in a row without a finite gradient, before the run gives up
MAX_FAILED_SAVES = 3  # in a row, each after one more update, before the run gives up


class Misfit(ValueError):
    """A state is whole, but not of this run: a sentence. other: what it was made with."""

    def __init__(self, name: str, other: str):
        self.other = other
        super().__init__(
            f'The run "{name}" was made with {other}: give this one a new name, or go back to what it was made with.'
        )


class Run:
    """One run: the adapter's parameters, their optimiser, what was counted, and the folder it lives in.

    Opening a folder that holds a run continues it; the state on disk is always that of a whole update.
    identity: what a run can't change and go on, by name, such as {"rank": "16"}; settings may change.
    lock: of the folder, where others could write there too; nothing is written once it does not hold any more.
    on_trouble: called at once with a sentence, whenever something can't be written and training goes on; `troubles`
    are all of these.
    Raises ValueError when the folder's run has another identity or optimiser, trained other parameters, was written
    by a newer version, or can't be read; then the sentence says which of its snapshots can.
    """

    @torch.inference_mode(False)  # ComfyUI runs nodes in it; all state of a run shall be ordinary tensors
    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Parameter],
        settings: Settings = DEFAULT,
        identity: dict[str, str] | None = None,
        lock: FolderLock | None = None,
    ):
        self.folder = Path(folder)
        self.lock = lock
        self.on_trouble: Callable[[str], Any] = lambda sentence: None
        self.troubles: list[str] = []
        self.parameters = parameters
        self.settings = settings
        self.identity = {**(identity or {}), "optimizer": settings.optimizer}
        self.optimizer = make_optimizer(
            settings.optimizer, parameters.values(), settings.learning_rate, settings.weight_decay
        )
        self.ema = {name: begin_average(p) for name, p in parameters.items()} if settings.ema else {}
        self.updates = 0  # finished, skipped ones included
        self.saved = 0  # how many of them are on disk
        self.failed_saves = 0  # in a row
        self.lost = False  # what is in memory is no whole state: a failed step could not be undone
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.history: list[dict[str, float]] = []
        self.spreads: dict[str, Spread] = {}  # of what each reward has said, by its name
        self.data = ""  # what it was trained on last, see train_on
        self.checked: set[Hashable] = set()  # what of a flow model's signatures, see derivative.check_once
        self.rollouts: dict[str, Tensor] = {}  # clean latents (C, H, W) that later updates will use again
        self._clear_away()
        if (file := newest_state(self.folder)) is not None:
            self._open(file)

    def _clear_away(self):
        """What a process that was killed left; of the two patterns the second is safetensors' own."""
        for pattern in ("**/*.tmp", "**/.tmp*"):
            for unfinished in self.folder.glob(pattern):
                with suppress(OSError):  # it is only in the way
                    unfinished.unlink()

    @torch.inference_mode(False)
    def update(self, scores: Iterable[Score], prompts: int) -> dict[str, float]:
        """One optimiser step from the scores of `prompts` prompts (once per pair of branches), averaged.

        Whatever is raised on the way leaves the run as it was; but where its state is larger than MOST_COPIED, a step
        that fails half-way leaves it as it was last saved. A loss, gradient or state that is not finite skips the
        step; raises RuntimeError after MAX_SKIPPED of them in a row, and after MAX_FAILED_SAVES failed ones. Raises
        ValueError, before anything is changed, for scores that are not of this run's adapter as it is now, and where
        there were gradients and none reached it.
        """
        check_whole("prompts", prompts, 1)
        self.check_whole()
        rollouts = dict(self.rollouts)
        stepping = False
        finite = False
        # To turn a schedule-free optimiser changes parameters.
        kept = self._copy(in_place=False) if hasattr(self.optimizer, "train") else None
        try:
            self.optimizer.zero_grad(set_to_none=True)  # whatever another's update left here
            self._turn("train")
            summaries = []
            for score in scores:
                check_belongs(score, self.parameters, self.updates + 1, self.name)
                score.pull(1 / prompts)
                summaries.append(summarise(score))
            check_reached(summaries, self.parameters, self.name)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_gradient_norm).item()
            metrics = {"update": self.updates + 1, **describe(summaries), "gradient_norm": norm}
            why = "its loss or gradient is not finite"
            if math.isfinite(norm) and math.isfinite(metrics["loss"]):
                kept = kept or self._copy()
                stepping = True
                self._step()
                self._turn("eval")
                self._average()
                self._remember(summaries)
                why = self._not_finite()
                finite = not why
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            if not finite:
                self._undo(kept, rollouts, stepping)
        if stepping and not finite and not kept:
            self.check_whole()
            raise RuntimeError(
                f"Update {metrics['update']} left {why}. The state is too large to be copied before each step, so the "
                f"run goes on as it was last saved, at update {self.updates}. {self._gentler()}"
            )
        self._finish(metrics, finite, why)
        return metrics

    def _not_finite(self) -> str:
        """What of the state is not finite; empty where all is."""
        tensors, header = self._state()
        flags: dict[torch.device, dict[str, Tensor]] = {}  # asked once for each device, which waits for it
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                flags.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
        for asked in flags.values():
            finite = torch.stack(list(asked.values())).tolist()
            if not all(finite):
                return f"numbers that are not finite in {list(asked)[finite.index(False)]}"
        for name, spread in self.spreads.items():
            if not all(map(math.isfinite, asdict(spread).values())):
                return f'numbers that are not finite in the spread of the reward "{name}"'
        return "a number that is none in the optimiser" if "NaN" in header["numbers"] else ""

    def _copy(self, in_place: bool = True) -> State | None:
        """The state, with which a step that fails half-way is undone; None if it is large.

        in_place: on its device, where it is small and fits there; else on the CPU.
        """
        tensors, header = self._state()
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > MOST_COPIED:
            return None
        if in_place and size <= MOST_IN_PLACE:
            with suppress(torch.OutOfMemoryError):
                return {name: tensor.clone() for name, tensor in tensors.items()}, header
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}, header

    def _undo(self, kept: State | None, rollouts: dict[str, Tensor], stepping: bool):
        """Put back what was before the update: from the copy; or, where a step has changed it and there is none, from
        disk, all of it, its rollouts and count of updates too. A run that has neither is lost."""
        try:
            self._turn("eval")
            if kept:
                self._put_back(*kept)
                rollouts = {name: self.rollouts.get(name, latent) for name, latent in rollouts.items()}
            if kept or not stepping:
                self.rollouts = rollouts
            else:
                self._go_back()
        except BaseException as error:
            self.lost = True
            log.error('The run "%s" is not whole in memory any more: a failed step left it so (%s).', self.name, error)
            if not isinstance(error, Exception):
                raise

    def _go_back(self):
        file = newest_state(self.folder) if self.saved else None
        if file is None:
            raise RuntimeError("nothing of it was saved yet, and its state is too large to be copied before each step")
        tensors, header = read_state(file)  # this run wrote it; to try the optimiser's part on stand-ins takes memory
        self._check_fits(header, tensors)
        self._put_back(tensors, header)
        self.saved = self.updates
        self.history = [metrics for metrics in self.history if metrics["update"] <= self.updates]
        log.warning("The step failed half-way; the run goes on as it was last saved, at update %d.", self.updates)

    def check_whole(self):
        """Raises RuntimeError, a sentence, if the run is lost: see `_undo`."""
        if self.lost:
            since = f"goes on after update {self.saved}" if self.saved else "begins anew"
            raise RuntimeError(
                f'A failed step could not be undone in the run "{self.name}", so it stopped: queue again, also SRPO '
                f"Trainer, and it {since}."
            )

    def _turn(self, mode: str):
        """Batching-free optimisers take gradients at another point ("train") than the one that is their result."""
        if hasattr(self.optimizer, mode):
            getattr(self.optimizer, mode)()

    def _step(self):
        factor = learning_rate_factor(self.updates + 1, self.settings.warmup, self.settings.cosine_to)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.settings.learning_rate
        self.optimizer.step()

    def _average(self):
        for name, average in self.ema.items():
            average.lerp_(self.parameters[name].detach().to(average), 1 - self.settings.ema)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are their moving average, if there is one: for samples and files."""
        kept = {name: self.parameters[name].detach().clone() for name in self.ema}
        self._put(self.ema)
        try:
            yield
        finally:
            self._put(kept)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]):
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def _remember(self, summaries: list[Summary]):
        for answer in (answer for each in summaries for answer in each.answers):
            answer.add_to(self.spreads.setdefault(answer.name, Spread()))

    def _finish(self, metrics: dict[str, float], finite: bool, why: str):
        self.updates += 1
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if not finite:
            self.skipped += 1
            log.warning("Update %d skipped: %s.", self.updates, why)
        self.history.append(metrics)
        self._save_if_due()
        if self.skipped_in_a_row >= MAX_SKIPPED:
            self.save()
            raise RuntimeError(
                f"{MAX_SKIPPED} updates in a row had no finite loss or gradient, or led to numbers that are not "
                f"finite, so the run stopped at update {self.updates}; the adapter is as it was before them. "
                f"{self._gentler()}"
            )

    def _gentler(self) -> str:
        rate = self.settings.learning_rate
        return f"Lower the learning rate ({rate:g}), or run the reward and the VAE in fp32 or bf16."

    def _save_if_due(self):
        """What can't be saved is said at once, and tried again after each update; MAX_FAILED_SAVES are too many.

        Raises RuntimeError then, and FolderGone at once.
        """
        every = self.settings.snapshot_every
        snapshot = bool(every and self.updates % every == 0)
        if not (snapshot or self.failed_saves or self.updates % self.settings.save_every == 0):
            return
        try:
            self._save_with_snapshot() if snapshot else self.save()
        except FolderGone:
            raise
        except RuntimeError as error:
            if self.failed_saves >= MAX_FAILED_SAVES:
                raise RuntimeError(f"{error} Saving failed {self.failed_saves} times, so the run stopped.") from error
            self.trouble(f"{error} Training goes on meanwhile; saving is tried again after the next update.")

    def trouble(self, sentence: str):
        """Say at once that something could not be written, while training goes on."""
        log.warning("%s", sentence)
        if sentence not in self.troubles:
            self.troubles.append(sentence)
        self.on_trouble(sentence)

    def write_aside(self, file: Path, write: Callable[[Path], Any]):
        """Write what the run does not need to go on: where that can't be, it is said, and training goes on.

        Raises FolderGone.
        """
        self.check_ours()
        try:
            write_whole(file, write, self.kept())
        except RuntimeError as error:
            self.trouble(str(error))

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    def train_on(self, data: str):
        """Remember what the run trains on, a few words with a digest; the log says when it was something else."""
        if self.data not in ("", data):
            log.info('The run "%s" goes on with %s; until now it was %s.', self.folder.name, data, self.data)
        self.data = data

    def check_ours(self):
        """Raises FolderGone if the folder has been deleted, moved or made anew by another since the run was opened."""
        if self.lock and not self.lock.holds():
            raise FolderGone(
                f'The folder of the run "{self.name}", {self.folder}, was deleted, moved or made anew while the run '
                "was open, so nothing more is written there. Move it back and queue again, and the run goes on; or "
                f"queue again as it is, to open what is there then. {self.kept()}"
            )

    def check_disk(self):
        """Raises RuntimeError, a sentence, if the folder can't be written to or has no room for a state."""
        self.check_ours()
        adapter = sum(parameter.nbytes for parameter in self.parameters.values())
        check_writable(self.folder, 4 * adapter)  # itself, two moments, the average

    def kept(self) -> str:
        """What a failure can't take from the user any more, as a sentence."""
        rest = f" Updates up to {self.updates} are kept while ComfyUI runs." if self.updates > self.saved else ""
        return f'The run "{self.name}" is saved up to update {self.saved}.{rest}'

    def save(self):
        """Write the state, whole or not at all, and the metrics beside it; nothing where nothing is new.

        Raises RuntimeError, a sentence, where it can't be written, and FolderGone.
        """
        if self.updates == self.saved:
            return
        self.check_whole()
        self.check_ours()
        self.write_aside(self.folder / METRICS, lambda path: path.write_text(history_text(self.history)))
        self.write_aside(self.folder / "run.json", lambda path: path.write_text(self._about()))
        try:
            write_whole(self.state_file, self._write_state, self.kept())
        except RuntimeError:
            self.failed_saves += 1
            raise
        self.saved = self.updates
        if self.failed_saves:
            self.failed_saves = 0
            self.trouble(f'The run "{self.name}" can be saved again, and is, up to update {self.saved}.')

    def _state(self) -> State:
        """All that an update changes, but the history."""
        tensors = {f"adapter.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"ema.{name}": average for name, average in self.ema.items()}
        tensors |= {f"rollout.{name}": latent.contiguous() for name, latent in self.rollouts.items()}
        header = {name: str(getattr(self, name)) for name in COUNTS}
        slots, header["numbers"] = optimizer_state(self.optimizer, list(self.parameters))
        header["spreads"] = json.dumps({name: asdict(spread) for name, spread in self.spreads.items()})
        return tensors | slots, header

    def _write_state(self, path: Path):
        tensors, header = self._state()
        header |= self.identity | {"version": str(VERSION), "data": self.data, "tensors": described(tensors)}
        header["settings"] = json.dumps(asdict(self.settings))
        save_file(tensors, path, header)

    def _save_with_snapshot(self):
        """The snapshot comes first and older ones go last, so that at no moment one that was promised is missing."""
        self.check_whole()
        self.write_aside(self.folder / METRICS, lambda path: path.write_text(history_text(self.history)))
        self.write_aside(snapshot_file(self.folder, self.updates), self._write_state)
        self.save()
        self._delete_old_snapshots()

    def _delete_old_snapshots(self):
        """All but the last few and the best, of those whose metrics are known."""
        known = {metrics["update"] for metrics in self.history}
        numbers = [number for number in snapshots_in(self.folder) if number in known]
        best = max(numbers, key=self.recent_words_gap, default=None)
        for number in {*numbers[: -self.settings.keep_snapshots]} - {best}:
            try:
                snapshot_file(self.folder, number).unlink()
            except OSError as error:  # on Windows, while another program has it open
                log.warning("The old snapshot of update %d can't be deleted: %s.", number, error)

    def recent_words_gap(self, update: int) -> float:
        """The mean words-gap of the RECENT updates up to this one; -inf where none was finite."""
        return recent_words_gap(self.history, update)

    def _about(self) -> str:
        """For people: what `state.safetensors` holds. Draws need no random state, they follow from seed and number."""
        counts = {"updates": self.updates, "skipped": self.skipped}
        about = counts | {"identity": self.identity, "settings": asdict(self.settings)}
        return json.dumps(about | {"versions": {"torch": torch.__version__}}, indent=2) + "\n"

    @torch.inference_mode(False)
    def _open(self, file: Path):
        try:
            tensors, header = self._read(file)
        except SpoiltState as error:
            raise ValueError(self._spoilt(file, error)) from error
        except NewerState as error:
            raise ValueError(f'The run "{self.name}" {error}') from error
        self._put_back(tensors, header)
        self.saved = self.updates
        self.data = header["data"]
        if file != self.state_file:
            log.warning('The run "%s" has no %s; it goes on from its snapshot %s.', self.name, STATE, file.name)
        before = json.loads(header["settings"])
        now = asdict(self.settings)
        if changed := [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]:
            log.info('The run "%s" goes on with other settings: %s.', self.name, ", ".join(changed))
        self.history = read_history(self.folder / METRICS, self.updates)

    def _read(self, file: Path) -> State:
        """A state that this run can go on from. Raises SpoiltState, NewerState and Misfit."""
        tensors, header = read_state(file)
        self._check_fits(header, tensors)
        try:
            check_optimizer_state(self.settings.optimizer, self.parameters, tensors, header["numbers"])
        except ValueError as error:
            raise SpoiltState(str(error)) from error
        return tensors, header

    def _spoilt(self, file: Path, error: SpoiltState) -> str:
        """The sentence for a run that can't be opened; what it advises has been tried, up to the new name."""
        whole = [update for update in snapshots_in(self.folder) if self._can_begin_at(update)]
        if whole:
            numbers = ", ".join(map(str, whole))
            advice = f"Whole are its snapshots of the updates {numbers}: to go on from the last one, queue with a new "
            advice += f'run name and "{self.name}@{whole[-1]}" in start_from, and all else as it is.'
        else:
            advice = "None of its snapshots is whole. " if snapshots_in(self.folder) else "It has no snapshots. "
            advice += f"Put a copy of {file.name} there if you have one, or take a new run name to begin anew."
        return f'The run "{self.name}" can\'t go on: {file} {error}. {advice}'

    def _can_begin_at(self, update: int) -> bool:
        try:
            self._read(snapshot_file(self.folder, update))
        except (SpoiltState, NewerState, Misfit):
            return False
        return True

    def _put_back(self, tensors: dict[str, Tensor], header: dict[str, str]):
        self._put({key.removeprefix("adapter."): v for key, v in tensors.items() if key.startswith("adapter.")})
        for name in self.ema:
            parameter = self.parameters[name]
            average = tensors.get(f"ema.{name}")
            self.ema[name] = begin_average(parameter) if average is None else average.to(parameter.device)
        self.rollouts = {k.removeprefix("rollout."): v for k, v in tensors.items() if k.startswith("rollout.")}
        self.optimizer.state.clear()  # to have its memory back, which may be what was missing
        restore_optimizer(self.optimizer, list(self.parameters), tensors, header["numbers"])
        self.spreads = spreads_of(header)
        for name in COUNTS:
            setattr(self, name, int(header[name]))

    def _check_fits(self, header: dict[str, str], tensors: dict[str, Tensor]):
        """Raises Misfit, and SpoiltState where the moving average is of another type than this run's."""
        other = [
            f"{name} {header.get(name)}, not {value}"
            for name, value in self.identity.items()
            if header.get(name) != value
        ]
        saved = {k.removeprefix("adapter."): kind_of(v) for k, v in tensors.items() if k.startswith("adapter.")}
        if not other and saved != {name: kind_of(p) for name, p in self.parameters.items()}:
            other = ["another model"]
        if other:
            raise Misfit(self.name, " and ".join(other))
        for name, parameter in self.parameters.items():
            average = tensors.get(f"ema.{name}")
            if average is not None and average.dtype != averaged_dtype(parameter):
                raise SpoiltState(f"has a moving average in {average.dtype}")


def kind_of(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def averaged_dtype(parameter: Tensor) -> torch.dtype:
    """fp32 at least: what an average gains in one update is lost in the rounding of bf16."""
    return torch.promote_types(parameter.dtype, torch.float32)


def begin_average(parameter: Parameter) -> Tensor:
    """A copy, in the type of averages."""
    return parameter.detach().to(averaged_dtype(parameter), copy=True)
