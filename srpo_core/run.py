"""A training run: one update after another, resumable after each."""

import json
import logging
import math
import shutil
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from .files import check_writable, write_whole
from .optimizers import learning_rate_factor, make_optimizer, optimizer_state, restore_optimizer
from .run_folder import METRICS, STATE, snapshot_file, snapshots_in
from .step import Score, Seen, describe, look
from .terms import Spread

log = logging.getLogger(__name__)

VERSION = 1  # of what a state file holds
RECENT = 8  # updates, whose mean words-gap is a snapshot's merit
COUNTS = ("updates", "skipped", "skipped_in_a_row")  # saved in the state's header
MOST_COPIED = 8 * 2**30  # bytes of state that are copied before each step: of a large LoRA, not of a whole model
MOST_IN_PLACE = 2**30  # of these, on their device: of FLUX's LoRA of rank 16, less than what a branch just freed there
MAX_SKIPPED = 10  # updates in a row without a finite gradient, before the run gives up


@dataclass(frozen=True)
class Settings:
    """How a run steps. Defaults as published, but for the learning rate, which is a LoRA's.

    warmup, cosine_to: see learning_rate_factor. ema: decay of the parameters' moving average; 0 keeps none.
    snapshot_every: updates between two snapshots, 0 for none; the last `keep_snapshots` and the best one are kept.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    max_gradient_norm: float = 0.1
    save_every: int = 5  # updates between two saved states
    optimizer: str = "AdamW"
    warmup: int = 0  # updates
    cosine_to: int = 0  # the update after which the learning rate is 0; 0: constant
    ema: float = 0.0
    snapshot_every: int = 0
    keep_snapshots: int = 3


class Run:
    """One run: the adapter's parameters, their optimiser, what was counted, and the folder it lives in.

    Opening a folder that holds a run continues it; the state on disk is always that of a whole update.
    identity: what a run can't change and go on, by name, such as {"rank": "16"}; settings may change.
    Raises ValueError when the folder's run has another identity or optimiser, trained other parameters, or was
    written by a newer version.
    """

    @torch.inference_mode(False)  # ComfyUI runs nodes in it; all state of a run shall be ordinary tensors
    def __init__(
        self,
        folder: Path,
        parameters: dict[str, Parameter],
        settings: Settings = Settings(),
        identity: dict[str, str] | None = None,
    ):
        self.folder = Path(folder)
        self.parameters = parameters
        self.settings = settings
        self.identity = {**(identity or {}), "optimizer": settings.optimizer}
        self.optimizer = make_optimizer(
            settings.optimizer, parameters.values(), settings.learning_rate, settings.weight_decay
        )
        self.ema = {name: begin_average(p) for name, p in parameters.items()} if settings.ema else {}
        self.updates = 0  # finished, skipped ones included
        self.saved = 0  # how many of them are on disk
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.history: list[dict[str, float]] = []
        self.spreads: dict[str, Spread] = {}  # of what each reward has said, by its name
        self.data = ""  # what it was trained on last, see train_on
        self.checked: set[Hashable] = set()  # what of a flow model's signatures, see derivative.check_once
        self.rollouts: dict[str, Tensor] = {}  # clean latents (C, H, W) that later updates will use again
        for pattern in ("**/*.tmp", "**/.tmp*"):  # what a process that was killed left; the second are safetensors'
            for unfinished in self.folder.glob(pattern):
                unfinished.unlink()
        if self.state_file.exists():
            self._load()

    @torch.inference_mode(False)
    def update(self, scores: Iterable[Score], prompts: int) -> dict[str, float]:
        """One optimiser step from the scores of `prompts` prompts (once per pair of branches), averaged.

        Whatever is raised on the way leaves the run as it was; but where its state is larger than MOST_COPIED, a step
        that fails half-way leaves it as it was last saved. A loss or gradient that is not finite skips the step;
        raises RuntimeError after MAX_SKIPPED of them in a row.
        """
        rollouts, stepping, finite = dict(self.rollouts), False, False
        # To turn a schedule-free optimiser changes parameters.
        kept = self._copy(in_place=False) if hasattr(self.optimizer, "train") else None
        try:
            self._turn("train")
            seen = []
            for score in scores:
                score.pull(1 / prompts)
                seen.append(look(score))
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_gradient_norm).item()
            metrics = {"update": self.updates + 1, **describe(seen), "gradient_norm": norm}
            if math.isfinite(norm) and math.isfinite(metrics["loss"]):
                kept = kept or self._copy()
                stepping = True
                self._step()
                self._turn("eval")
                self._average()
                self._remember(seen)
                finite = True
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            if not finite:
                self._undo(kept, stepping)
                self.rollouts = rollouts
        self._finish(metrics, finite)
        return metrics

    def _copy(self, in_place: bool = True) -> tuple[dict[str, Tensor], dict[str, str]] | None:
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

    def _undo(self, kept: tuple | None, stepping: bool):
        self._turn("eval")
        if kept:
            self._put_back(*kept)
        elif stepping and self.saved:
            self._load()
            log.warning("The step failed half-way; the run goes on as it was last saved, at update %d.", self.updates)

    def _turn(self, mode: str):
        """Schedule-free optimisers take gradients at another point ("train") than the one that is their result."""
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

    def _remember(self, seen: list[Seen]):
        for answer in (answer for each in seen for answer in each.answers):
            answer.add_to(self.spreads.setdefault(answer.name, Spread()))

    def _finish(self, metrics: dict[str, float], finite: bool):
        self.updates += 1
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if not finite:
            self.skipped += 1
            log.warning("Update %d skipped: its loss or gradient is not finite.", self.updates)
        self.history.append(metrics)
        every = self.settings.snapshot_every
        if self.updates % self.settings.save_every == 0 or (every and self.updates % every == 0):
            self.save()
        if every and self.updates % every == 0:
            self._snapshot()
        if self.skipped_in_a_row >= MAX_SKIPPED:
            self.save()
            raise RuntimeError(
                f"{MAX_SKIPPED} updates in a row had no finite loss or gradient, so the run stopped at update "
                f"{self.updates}; the adapter is as it was before them. Lower the learning rate "
                f"({self.settings.learning_rate:g}), or run the reward and the VAE in fp32 or bf16."
            )

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    def train_on(self, data: str):
        """Remember what the run trains on, a few words with a digest; the log says when it was something else."""
        if self.data not in ("", data):
            log.info('The run "%s" goes on with %s; until now it was %s.', self.folder.name, data, self.data)
        self.data = data

    def check_disk(self):
        """Raises RuntimeError, a sentence, if the folder can't be written to or has no room for a state."""
        adapter = sum(parameter.nbytes for parameter in self.parameters.values())
        check_writable(self.folder, 4 * adapter)  # itself, two moments, the average

    def kept(self) -> str:
        """What a failure can't take from the user any more, as a sentence."""
        rest = f" Updates up to {self.updates} are kept while ComfyUI runs." if self.updates > self.saved else ""
        return f'The run "{self.folder.name}" is saved up to update {self.saved}.{rest}'

    def save(self):
        """Write the state, whole or not at all, and the metrics beside it; nothing where nothing is new."""
        if self.updates == self.saved:
            return
        kept = self.kept()
        tensors, header = self._state()
        header |= self.identity | {"version": str(VERSION), "data": self.data}
        header["settings"] = json.dumps(asdict(self.settings))
        write_whole(self.folder / METRICS, lambda path: path.write_text(self._metrics_text()), kept)
        write_whole(self.folder / "run.json", lambda path: path.write_text(self._about()), kept)
        write_whole(self.state_file, lambda path: save_file(tensors, path, header), kept)
        self.saved = self.updates

    def _state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All that an update changes, but the history."""
        tensors = {f"adapter.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"ema.{name}": average for name, average in self.ema.items()}
        tensors |= {f"rollout.{name}": latent.contiguous() for name, latent in self.rollouts.items()}
        header = {name: str(getattr(self, name)) for name in COUNTS}
        slots, header["numbers"] = optimizer_state(self.optimizer, list(self.parameters))
        header["spreads"] = json.dumps({name: asdict(spread) for name, spread in self.spreads.items()})
        return tensors | slots, header

    def _snapshot(self):
        """Keep the state of this moment under its number, and of the earlier ones the last few and the best."""
        file = snapshot_file(self.folder, self.updates)
        write_whole(file, lambda path: shutil.copyfile(self.state_file, path), self.kept())
        numbers = snapshots_in(self.folder)
        kept = {*numbers[-self.settings.keep_snapshots :], max(numbers, key=self.recent_words_gap)}
        for number in set(numbers) - kept:
            snapshot_file(self.folder, number).unlink()

    def recent_words_gap(self, update: int) -> float:
        """The mean words-gap of the RECENT updates up to this one; -inf where none was finite."""
        recent = [metrics.get("words_gap", math.nan) for metrics in self.history[:update][-RECENT:]]
        finite = [gap for gap in recent if math.isfinite(gap)]
        return sum(finite) / len(finite) if finite else -math.inf

    def _metrics_text(self) -> str:
        # JSON knows no NaN, which a skipped update may have.
        lines = [{k: v if math.isfinite(v) else None for k, v in metrics.items()} for metrics in self.history]
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    def _about(self) -> str:
        """For people: what `state.safetensors` holds. Draws need no random state, they follow from seed and number."""
        counts = {"updates": self.updates, "skipped": self.skipped}
        about = counts | {"identity": self.identity, "settings": asdict(self.settings)}
        return json.dumps(about | {"versions": {"torch": torch.__version__}}, indent=2) + "\n"

    @torch.inference_mode(False)
    def _load(self):
        with safe_open(self.state_file, "pt") as file:
            header = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        self._check_fits(header, tensors)
        self._put_back(tensors, header)
        self.data = header.get("data", "")
        before, now = json.loads(header["settings"]), asdict(self.settings)
        if changed := [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]:
            log.info('The run "%s" goes on with other settings: %s.', self.folder.name, ", ".join(changed))
        self.saved = self.updates
        lines = (self.folder / METRICS).read_text().splitlines()
        kept = [json.loads(line) for line in lines[: self.updates]]
        self.history = [{k: math.nan if v is None else v for k, v in metrics.items()} for metrics in kept]

    def _put_back(self, tensors: dict[str, Tensor], header: dict[str, str]):
        self._put({key.removeprefix("adapter."): v for key, v in tensors.items() if key.startswith("adapter.")})
        self.ema = {name: tensors.get(f"ema.{name}", begin_average(self.parameters[name])) for name in self.ema}
        self.rollouts = {k.removeprefix("rollout."): v for k, v in tensors.items() if k.startswith("rollout.")}
        self.optimizer.state.clear()  # to have its memory back, which may be what was missing
        restore_optimizer(self.optimizer, list(self.parameters), tensors, header["numbers"])
        self.spreads = {name: Spread(**spread) for name, spread in json.loads(header["spreads"]).items()}
        for name in COUNTS:
            setattr(self, name, int(header[name]))

    def _check_fits(self, header: dict[str, str], tensors: dict[str, Tensor]):
        if int(header["version"]) > VERSION:
            raise ValueError(
                f'The run "{self.folder.name}" was written by a newer version of this pack (format '
                f"{header['version']}, this one knows {VERSION}): update the pack, or give this run a new name."
            )
        other = [
            f"{name} {header.get(name)}, not {value}"
            for name, value in self.identity.items()
            if header.get(name) != value
        ]
        saved = {k.removeprefix("adapter."): tuple(v.shape) for k, v in tensors.items() if k.startswith("adapter.")}
        if not other and saved != {name: tuple(p.shape) for name, p in self.parameters.items()}:
            other = ["another model"]
        if other:
            raise ValueError(
                f'The run "{self.folder.name}" was made with {" and ".join(other)}: '
                "give this one a new name, or go back to what it was made with."
            )


def begin_average(parameter: Parameter) -> Tensor:
    """A copy, in fp32 at least: what an average gains in one update is lost in the rounding of bf16."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
