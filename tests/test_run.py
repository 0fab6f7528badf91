"""A training run: what it computes, what it leaves on disk, and what a failure leaves behind."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_world import SHAPE, TinyData, TinyDecoder, TinyFlow, TinyReward, numbers
from torch.nn import Parameter

from srpo_core import run as run_module
from srpo_core.loop import Schedule, draw_noise, prompt_index, sample_scores, train
from srpo_core.objective import Objective
from srpo_core.run import MAX_SKIPPED, Run, Settings, branch, saved_updates
from srpo_core.schedule import Window
from srpo_core.terms import Term

SETTINGS = Settings(learning_rate=1e-2)
TWO = Schedule(SHAPE, batch=2)
HPS = Objective()


def world(reward=None, dtype=torch.float32, objective=HPS):
    terms = [Term(reward or TinyReward(), objective)]
    return dict(flow=TinyFlow(dtype), decoder=TinyDecoder(), terms=terms, window=Window(), dataset=TinyData())


def go(folder, updates, schedule=TWO, settings=SETTINGS, on_update=lambda _: None, **options):
    """Open the run in `folder` with a fresh model, as after a restart, and make `updates` more updates."""
    parts = world(**options)
    run = Run(folder, parts["flow"].parameters, settings)
    train(run, updates, schedule, on_update=on_update, **parts)
    return run


def opened(folder):
    """The run in `folder` as it lies on disk."""
    return Run(folder, TinyFlow(torch.float32).parameters, SETTINGS)


def state(run):
    """Everything an update depends on or changes, as a flat dict of tensors."""
    names = list(run.parameters)
    slots = {f"{names[i]}.{k}": v for i, s in run.optimizer.state_dict()["state"].items() for k, v in s.items()}
    return {k: v.detach().clone() for k, v in {**run.parameters, **slots}.items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What an update computes


@pytest.mark.parametrize("at_once", [4, 3])
def test_many_at_once_is_one_by_one_accumulated(tmp_path, at_once):
    one = go(tmp_path / "one", 3, Schedule(SHAPE, batch=4, at_once=1), dtype=torch.float64)
    many = go(tmp_path / "many", 3, Schedule(SHAPE, batch=4, at_once=at_once), dtype=torch.float64)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(many.parameters[name], parameter, rtol=0, atol=1e-6)
    for metrics, expected in zip(many.history, one.history):
        assert metrics == pytest.approx(expected, abs=1e-6)


def test_first_step_is_adamws_on_the_clipped_mean_gradient(tmp_path):
    settings = Settings(learning_rate=1e-2, weight_decay=0.1, max_gradient_norm=0.01)
    schedule = TWO
    parts = world(dtype=torch.float64)
    for score in sample_scores(Run(tmp_path / "a", parts["flow"].parameters), schedule=schedule, **parts):
        score.pull(0.5)
    gradients = {name: p.grad for name, p in parts["flow"].parameters.items()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert norm > settings.max_gradient_norm

    run = go(tmp_path / "b", 1, schedule, settings, dtype=torch.float64)
    assert run.history[0]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for name, start in TinyFlow().parameters.items():
        clipped = gradients[name] * 0.01 / norm
        expected = start * (1 - 1e-2 * 0.1) - 1e-2 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(run.parameters[name], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(state(run)[f"{name}.exp_avg"], 0.1 * clipped, rtol=1e-4, atol=1e-12)


def test_training_lowers_the_loss(tmp_path):
    def losses(run):
        return torch.tensor([metrics["loss"] for metrics in run.history])

    objective = Objective(positive=("Real",), negative=("Oil",), branches="denoise")
    still, moved = (
        go(tmp_path / str(rate), 40, settings=Settings(learning_rate=rate), objective=objective) for rate in (0.0, 0.05)
    )
    assert losses(moved)[20:].mean() < losses(still)[20:].mean() - 0.01


def test_the_first_update_is_number_one(tmp_path):
    reward = TinyReward()
    run = go(tmp_path, 2, Schedule(SHAPE), reward=reward)
    words = [(positive[0].split(".")[0], negative[0].split(".")[0]) for positive, negative in reward.asked]
    assert words == [("Detail", "Painting")] * 2 + [("Detailed", "Anime")] * 2
    assert [metrics["update"] for metrics in run.history] == [1, 2] and run.updates == 2


def test_draw_noise_is_what_the_host_draws():
    noise = draw_noise([7, 8, 2**64 - 1], (16, 4, 6))
    assert noise.dtype == torch.float32
    for sample, seed in zip(noise, (7, 8, 2**64 - 1)):
        torch.manual_seed(seed)
        assert torch.equal(sample, torch.randn(1, 16, 4, 6)[0])


def test_seeds_wrap_around_at_the_largest_of_the_host(tmp_path):
    run = go(tmp_path, 2, Schedule(SHAPE, seed=2**64 - 1))
    assert run.updates == 2


def test_nothing_draws_from_the_global_random_state(tmp_path):
    before = torch.get_rng_state()
    go(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prompts", [1, 2, 7])
def test_every_prompt_comes_once_per_round(prompts):
    rounds = [[prompt_index(3, r * prompts + i, prompts) for i in range(prompts)] for r in range(20)]
    assert all(sorted(order) == list(range(prompts)) for order in rounds)
    if prompts == 7:
        assert len(set(map(tuple, rounds))) > 15
        assert rounds != [[prompt_index(4, r * 7 + i, 7) for i in range(7)] for r in range(20)]


def test_rounds_run_on_through_updates_and_restarts(tmp_path):
    asked = []
    for updates in (2, 1, 2):
        reward = TinyReward()
        go(tmp_path, updates, TWO, reward=reward)
        asked += [positive[0].split(". ")[1] for positive, _ in reward.asked[::2]]  # the denoise branch's
    assert sorted(asked[:5]) == sorted(asked[5:]) == TinyData().prompts


# What it leaves on disk


@pytest.mark.parametrize("pieces", [(3, 4), (1, 5, 1)])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, pieces):
    straight = go(tmp_path / "straight", 7)
    for updates in pieces:
        resumed = go(tmp_path / "pieces", updates)
    assert same(state(resumed), state(straight))
    assert resumed.history == straight.history and resumed.updates == 7
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "pieces")]
    assert lines[0] == lines[1]


def test_resumed_from_a_kill_equals_uninterrupted(tmp_path):
    """Killed without a word, a run goes on from the last saved state, and comes to the same."""
    straight = go(tmp_path / "straight", 5, settings=Settings(learning_rate=1e-2, save_every=2))

    parts = world()
    run = Run(tmp_path / "killed", parts["flow"].parameters, Settings(learning_rate=1e-2, save_every=2))
    for _ in range(3):
        run.update(sample_scores(run, schedule=TWO, **parts), 2)
    assert saved_updates(tmp_path / "killed") == 2
    resumed = go(tmp_path / "killed", 3)
    assert same(state(resumed), state(straight)) and resumed.history == straight.history


def test_cancel_keeps_the_last_finished_update(tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(metrics):
        if metrics["update"] == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        go(tmp_path / "cancelled", 7, on_update=cancel)
    assert saved_updates(tmp_path / "cancelled") == 3
    straight = go(tmp_path / "straight", 7)
    assert same(state(go(tmp_path / "cancelled", 4)), state(straight))


def test_a_failure_in_the_first_update_leaves_no_run_behind(tmp_path):
    """So that the same name can be tried again with a smaller adapter."""

    def out_of_memory(score):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        go(tmp_path / "run", 1, reward=SpoiltReward([1], out_of_memory))
    Run(tmp_path / "run", {"smaller": Parameter(torch.zeros(1, 2))})


def test_saved_updates(tmp_path):
    assert saved_updates(tmp_path / "nothing") == 0
    go(tmp_path / "run", 3)
    assert saved_updates(tmp_path / "run") == 3


def test_metrics_are_one_json_object_per_update(tmp_path):
    run = go(tmp_path, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.history and len(lines) == 3


def test_run_json_tells_people_what_is_there(tmp_path):
    go(tmp_path, 3)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["updates"] == 3 and about["settings"]["learning_rate"] == SETTINGS.learning_rate
    assert about["versions"]["torch"] == torch.__version__


def test_state_is_never_half_written(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    before = go(folder, 2)
    kept = (folder / "state.safetensors").read_bytes()

    def half(tensors, path, *_):
        Path(path).write_bytes(kept[:100])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(run_module, "save_file", half)
        go(folder, 1)
    assert (folder / "state.safetensors").read_bytes() == kept
    resumed = opened(folder)
    assert same(state(resumed), state(before)) and resumed.history == before.history
    assert same(state(go(folder, 1)), state(go(tmp_path / "straight", 3)))


@pytest.mark.parametrize(
    "other",
    [
        {"mix": Parameter(torch.zeros(2, 2))},
        {"mix": Parameter(torch.zeros(2, 2)), "bias": Parameter(torch.zeros(3, 1, 1))},
        {"mix": Parameter(torch.zeros(2, 2)), "other": Parameter(torch.zeros(2, 1, 1))},
    ],
    ids=["missing", "shape", "name"],
)
def test_another_adapter_in_the_folder_is_refused(tmp_path, other):
    go(tmp_path / "mine", 1)
    with pytest.raises(ValueError, match='The run "mine" was made with another model'):
        Run(tmp_path / "mine", other)
    assert all((parameter == 0).all() for parameter in other.values())


# What a failure leaves behind


class SpoiltReward(TinyReward):
    """Not a number, or without a finite gradient, in the calls whose numbers are given."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls, self.spoil = calls, spoil

    def score_many(self, images, *texts):
        score = super().score_many(images, *texts)
        return self.spoil(score) if len(self.asked) in self.calls else score


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


SPOILS = {
    "both": lambda score: score * float("nan"),
    "loss": lambda score: score + float("nan"),  # the hinge's gradient at nan is 0: only the loss tells
    "gradient": InfiniteGradient.apply,
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_an_update_without_finite_gradient_is_skipped_and_counted(tmp_path, spoil):
    go(tmp_path, 1)
    before = state(opened(tmp_path))
    run = go(tmp_path, 1, reward=SpoiltReward([2], spoil))  # one of four scores is enough
    assert same(state(run), before)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (2, 1, 1)
    assert all(parameter.grad is None for parameter in run.parameters.values())
    run = go(tmp_path, 1)
    assert not same(state(run), before)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (3, 1, 0)


def test_the_run_stops_after_ten_skipped_in_a_row(tmp_path):
    good = go(tmp_path, 2)
    before = state(good)
    always = SpoiltReward(range(1000), SPOILS["loss"])
    go(tmp_path, MAX_SKIPPED - 1, reward=always)
    with pytest.raises(RuntimeError, match="10 updates in a row had no finite loss or gradient.*at update 12") as error:
        go(tmp_path, 5, reward=SpoiltReward(range(1000), SPOILS["loss"]))
    assert "Lower the learning rate (0.01)" in str(error.value)
    stopped = opened(tmp_path)
    assert same(state(stopped), before) and (stopped.updates, stopped.skipped) == (12, 10)


def test_a_finite_update_between_starts_the_count_again(tmp_path):
    calls = [call for call in range(1, 100) if (call - 1) // 4 % 10 != 9]  # four scores an update, each tenth is good
    run = go(tmp_path, 20, reward=SpoiltReward(calls, SPOILS["loss"]))
    assert (run.skipped, run.skipped_in_a_row) == (18, 0)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_exception_inside_a_score_leaves_all_as_it_was(tmp_path, call):
    before = go(tmp_path / "run", 2)
    kept = state(before)

    def out_of_memory(score):
        raise torch.OutOfMemoryError("CUDA out of memory")

    parts = world(SpoiltReward([call], out_of_memory))
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, 3, TWO, **parts)
    for left in (run, opened(tmp_path / "run")):
        assert same(state(left), kept) and left.history == before.history

    parts["terms"] = [Term(TinyReward(), HPS)]  # the same run goes on, with nothing left of the failed update
    train(run, 1, TWO, **parts)
    assert same(state(run), state(go(tmp_path / "straight", 3)))


def test_a_branch_switched_off_is_not_scored(tmp_path):
    parts = world(objective=Objective(branches="inversion"))
    run = Run(tmp_path, parts["flow"].parameters, SETTINGS)
    scores = list(sample_scores(run, schedule=Schedule(SHAPE, batch=3), **parts))
    assert [score.branch.name for score in scores] == ["inversion"] * 3


def test_the_noise_prior_is_the_rollouts_own_noise(tmp_path):
    """Direct-Align recovers x0 with the noise it was rolled out from, each sample with its own."""
    seen = {}
    parts = world(dtype=torch.float64)
    flow = parts["flow"]
    rollout, velocity = flow.rollout, flow.velocity

    def remember_rollout(noise, cond, *seed):
        seen.update(noise=noise, x0=rollout(noise, cond, *seed))
        return seen["x0"]

    def remember_velocity(x, sigma, cond):
        s = sigma.view(-1, 1, 1, 1)
        torch.testing.assert_close(x, (1 - s) * seen["x0"] + s * seen["noise"], rtol=0, atol=1e-6)
        return velocity(x, sigma, cond)

    flow.rollout, flow.velocity = remember_rollout, remember_velocity
    run = Run(tmp_path, flow.parameters, SETTINGS)
    assert len(list(sample_scores(run, schedule=Schedule(SHAPE, batch=2, at_once=2, seed=5), **parts))) == 2
    assert torch.equal(seen["noise"], draw_noise([5, 6], SHAPE))
    assert not torch.equal(numbers(5, *SHAPE), seen["noise"][0])


# Snapshots


def snapshots(folder):
    return [int(file.stem) for file in sorted((folder / "snapshots").iterdir())]


def test_snapshots_keep_the_last_and_the_best(tmp_path, monkeypatch):
    merits = {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.3, 10: 0.4}
    monkeypatch.setattr(Run, "recent_words_gap", lambda self, update: merits[update])
    go(tmp_path, 10, settings=Settings(snapshot_every=2, keep_snapshots=2, save_every=100))
    assert snapshots(tmp_path) == [4, 8, 10]


def test_a_snapshot_s_merit_is_the_mean_of_the_updates_before_it(tmp_path):
    run = go(tmp_path, 12)
    gaps = [metrics["words_gap"] for metrics in run.history]
    assert run.recent_words_gap(10) == pytest.approx(sum(gaps[2:10]) / 8)
    assert run.recent_words_gap(3) == pytest.approx(sum(gaps[:3]) / 3)


@pytest.mark.parametrize("update", [4, None])
def test_a_branch_is_the_run_as_it_was(tmp_path, update):
    settings = Settings(learning_rate=1e-2, snapshot_every=2)
    go(tmp_path / "source", 6, settings=settings)
    branch(tmp_path / "source", update, tmp_path / "branch")
    branched = go(tmp_path / "branch", 3, settings=settings)
    straight = go(tmp_path / "straight", (update or 6) + 3, settings=settings)
    assert same(state(branched), state(straight)) and branched.history == straight.history


def test_a_branch_from_nowhere_is_refused(tmp_path):
    go(tmp_path / "source", 4, settings=Settings(snapshot_every=2))
    with pytest.raises(ValueError, match="no snapshot of update 3 to start from in .*; its snapshots: 2, 4"):
        branch(tmp_path / "source", 3, tmp_path / "branch")
    with pytest.raises(ValueError, match="no run to start from"):
        branch(tmp_path / "nothing", None, tmp_path / "branch")


def test_a_full_disk_leaves_the_last_state_and_no_half_of_a_new_one(tmp_path, monkeypatch):
    go(tmp_path, 2, settings=Settings(save_every=1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}

    def full(tensors, path, header):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path, 1, settings=Settings(save_every=1))
    monkeypatch.undo()
    assert (tmp_path / "state.safetensors").read_bytes() == before["state.safetensors"]
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == set(before)
    assert opened(tmp_path).updates == 2 and len(opened(tmp_path).history) == 2


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    go(tmp_path, 2)
    (tmp_path / "state.safetensors.tmp").write_bytes(b"half")
    opened(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


# Photos


class PhotoData(TinyData):
    """Five photos of two shapes."""

    def shape(self, index):
        return (2, 4, 4) if index % 2 else (2, 6, 4)

    def latents(self, indices):
        assert len({self.shape(i) for i in indices}) == 1
        return torch.stack([numbers(100 + i, *self.shape(i), dtype=torch.float32) for i in indices])


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_photos_take_the_place_of_rollouts(tmp_path, at_once):
    parts = world() | {"dataset": PhotoData()}
    parts["flow"].rollout = None
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    train(run, 3, Schedule(SHAPE, batch=5, at_once=at_once), **parts)
    alone = world() | {"dataset": PhotoData()}
    one = Run(tmp_path / "one", alone["flow"].parameters, SETTINGS)
    train(one, 3, Schedule(SHAPE, batch=5), **alone)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(run.parameters[name], parameter, rtol=0, atol=1e-6)


# What a run tells


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(folder / "events")).Reload()
    return {name: [(e.step, e.value) for e in written.Scalars(name)] for name in written.Tags()["scalars"]}


def test_tensorboard_shows_each_update_once(tmp_path):
    settings = Settings(learning_rate=1e-2, save_every=2)
    go(tmp_path, 2, settings=settings)
    parts = world()
    lost = Run(tmp_path, parts["flow"].parameters, settings)
    lost.save = lambda: None  # as in a process that dies
    train(lost, 1, TWO, **parts)
    run = go(tmp_path, 2, settings=settings)
    shown = scalars(tmp_path)
    for name in ("loss", "words_gap", "gradient_norm"):
        assert shown[name] == [(m["update"], pytest.approx(m[name], rel=1e-6)) for m in run.history]


def test_without_tensorboard_a_run_trains_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert go(tmp_path, 1).updates == 1 and not (tmp_path / "events").exists()


def test_changed_settings_are_named(tmp_path, caplog):
    go(tmp_path, 2)
    with caplog.at_level("INFO"):
        go(tmp_path, 1, settings=Settings(learning_rate=5e-3, ema=0.9))
    assert "goes on with other settings: learning_rate 0.01 -> 0.005, ema 0.0 -> 0.9." in caplog.text


# Several pairs of branches of one rollout


def test_pairs_share_a_rollout_and_have_their_own_noise_levels(tmp_path):
    parts = world()
    rollout, rolled = parts["flow"].rollout, []
    parts["flow"].rollout = lambda *arguments: rolled.append(1) or rollout(*arguments)
    run = Run(tmp_path, parts["flow"].parameters, SETTINGS)
    scores = list(sample_scores(run, schedule=Schedule(SHAPE, batch=2, pairs=3), **parts))
    assert len(rolled) == 2 and len(scores) == 2 * 3 * 2
    levels = {score.branch.sigma_out.item() for score in scores if score.branch.name == "denoise"}
    assert len(levels) == 6
    first = list(sample_scores(run, schedule=Schedule(SHAPE, batch=2), **parts))
    assert [s.branch.sigma_out.item() for s in scores[:2]] == [s.branch.sigma_out.item() for s in first[:2]]


def test_the_gradient_of_pairs_is_their_mean(tmp_path):
    parts = world(dtype=torch.float64)
    run = Run(tmp_path, parts["flow"].parameters, Settings(max_gradient_norm=1e9))
    norms = []
    for pairs in (1, 2):
        scores = list(sample_scores(run, schedule=Schedule(SHAPE, batch=1, pairs=pairs), **parts))
        for score in scores:
            score.pull(1 / pairs)
        norms.append({name: p.grad.clone() for name, p in parts["flow"].parameters.items()})
        run.optimizer.zero_grad()
    with_pairs = go(tmp_path / "pairs", 1, Schedule(SHAPE, batch=1, pairs=2), dtype=torch.float64)
    expected = torch.cat([g.flatten() for g in norms[1].values()]).norm().item()
    assert with_pairs.history[0]["gradient_norm"] == pytest.approx(expected, rel=1e-9)
    assert norms[0]["mix"].ne(norms[1]["mix"]).any()
