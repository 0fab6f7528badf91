"""A training run: what an update computes."""

import weakref

import pytest
import torch
from tiny_run import TWO, go, state, world
from tiny_world import SHAPE, TinyFlow

from srpo_core.algorithm.objective import Objective
from srpo_core.run import undo
from srpo_core.run.draws import Batching
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import make_update, sample_scores


def test_first_step_is_adamws_on_the_clipped_mean_gradient(tmp_path):
    settings = Settings(learning_rate=1e-2, weight_decay=0.1, max_gradient_norm=0.01)
    batching = TWO
    parts = world(dtype=torch.float64)
    for score in sample_scores(Run(tmp_path / "a", parts["flow"].parameters), Training(batching=batching, **parts)):
        score.pull(0.5)
    gradients = {name: p.grad for name, p in parts["flow"].parameters.items()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert norm > settings.max_gradient_norm

    run = go(tmp_path / "b", 1, batching, settings, dtype=torch.float64)
    assert run.history[0]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for name, start in TinyFlow().parameters.items():
        clipped = gradients[name] * 0.01 / norm
        expected = start * (1 - 1e-2 * 0.1) - 1e-2 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(run.parameters[name], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(state(run)[f"{name}.exp_avg"], 0.1 * clipped, rtol=1e-4, atol=1e-12)


def test_an_update_keeps_no_pictures_of_what_it_has_pulled(tmp_path):
    alive = []
    parts = world()
    run = Run(tmp_path, parts["flow"].parameters)

    def scores():
        pictures = []
        for score in sample_scores(run, Training(batching=Batching(shape=SHAPE, batch=4), **parts)):
            pictures.append(weakref.ref(score.image))
            yield score
            del score
            alive.append(sum(picture() is not None for picture in pictures))

    make_update(run, scores(), 4)
    assert len(alive) == 8 and max(alive) <= 2


def test_the_state_is_copied_for_the_step_alone(tmp_path, monkeypatch):
    """While scores take what memory there is, no copy does."""
    run = Run(tmp_path, (parts := world())["flow"].parameters, Settings(save_every=1))
    order = []

    def scores():
        for score in sample_scores(run, Training(batching=TWO, **parts)):
            order.append("score")
            yield score

    monkeypatch.setattr(undo, "copy_of", noted(undo.copy_of, "copy", order))
    run.step = noted(run.step, "step", order)
    make_update(run, scores(), 2)
    assert order == ["score"] * 4 + ["copy", "step"]


def noted(function, name, order):
    def call(*args):
        order.append(name)
        return function(*args)

    return call


def test_a_state_that_does_not_fit_beside_itself_is_copied_to_the_cpu(tmp_path):
    run = go(tmp_path, 1)
    tensors, header = run.contents()
    run.contents = lambda: ({name: OnAFullDevice(tensor) for name, tensor in tensors.items()}, header)
    copied, _ = undo.copy_of(run)
    assert all(torch.equal(copied[name], tensor) for name, tensor in tensors.items())


class OnAFullDevice:
    nbytes = 4

    def __init__(self, tensor):
        self.tensor = tensor

    def clone(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def to(self, device, copy):
        assert device == "cpu"
        return self.tensor.to(device, copy=copy)


def test_training_lowers_the_loss(tmp_path):
    def losses(run):
        return torch.tensor([metrics["loss"] for metrics in run.history])

    objective = Objective(positive=("Real",), negative=("Oil",), branches="denoise")
    still, moved = (
        go(tmp_path / str(rate), 40, settings=Settings(learning_rate=rate), objective=objective) for rate in (0.0, 0.05)
    )
    assert losses(moved)[20:].mean() < losses(still)[20:].mean() - 0.01
