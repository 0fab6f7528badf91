"""What a user reads on the node when something can't work; nothing is left half-written."""

import prompts
import pytest
from filelock import FileLock
from host_server import HostError


def refuses(host, prompt: dict, *words: str):
    with pytest.raises(HostError) as refusal:
        host.run(prompt)
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


@pytest.mark.parametrize("words", ["", " \n ,"])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_blank_words(host, side, words):
    prompt = prompts.train("words", 1)
    prompt["objective"]["inputs"][side] = words
    refuses(host, prompt, side, "at least one word")


@pytest.mark.parametrize("text", ["", "  \n# only a comment\n"])
def test_no_prompts(host, text):
    refuses(host, prompts.train("none", 1, text=text), "no prompts")


@pytest.mark.parametrize("sigma_max, sigma_min", [(0.8, 0.8), (0.7, 0.9), (1.0, 0.75)])
def test_windows_that_cannot_be(host, sigma_max, sigma_min):
    for make in (lambda **w: prompts.train("window", 1, **w), lambda **w: prompts.one_step("window", 0, **w)):
        refuses(host, make(sigma_max=sigma_max, sigma_min=sigma_min), str(sigma_max), "sigma_m")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", "/etc", "nul", "CON.txt", ".hidden", "dot.", "x" * 65])
def test_run_names(host, name):
    refuses(host, prompts.train(name, 1), "run name")


@pytest.mark.parametrize("rank", [0, 1024])
def test_ranks(host, rank):
    refuses(host, prompts.train("rank", 1, trainer={"rank": rank}), str(rank))
    assert not (host.base / "output/srpo/rank/state.safetensors").exists()


@pytest.mark.parametrize("change", [{"rank": 8}, {"alpha": 8.0}, {"adapter": "LoKr"}, {"precision": "bf16"}])
def test_another_adapter_under_the_same_name(host, change):
    host.run(prompts.train("mine", 1))
    file = host.base / "output/srpo/mine/state.safetensors"
    before = file.read_bytes()
    ((name, value),) = change.items()
    was = (prompts.ADAPTER | prompts.OPTIMIZER)[name]
    refuses(host, prompts.train("mine", 1, trainer=change), '"mine"', f"{name} {was}, not {value}")
    assert file.read_bytes() == before


def test_two_trainers_of_one_run(host):
    prompt = prompts.train("twice", 1)
    prompt["trainer again"] = prompts.base("twice")["trainer"]
    prompt["train again"] = prompts.train("twice", 1)["train"]
    prompt["train again"]["inputs"]["trainer"] = ["trainer again", 0]
    refuses(host, prompt, "Two SRPO Trainers", '"twice"')


def test_a_size_that_does_not_fit(host):
    refuses(host, prompts.train("size", 1, width=72), "size of the rollouts, set on SRPO Rollouts", "72x64", "16")


def test_a_latent_of_another_model(host):
    prompt = prompts.one_step("latent", 0)
    prompt["other"] = prompts.node("EmptyLatentImage", width=64, height=64, batch_size=1)
    prompt["inject"]["inputs"]["latent"] = ["other", 0]
    refuses(host, prompt, "(1, 4, 8, 8)", "16")


def test_a_run_that_another_comfyui_has_open(host):
    folder = host.base / "output/srpo/locked"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        refuses(host, prompts.train("locked", 1), '"locked"', "another ComfyUI")
    host.run(prompts.train("locked", 1))


def test_nothing_to_train(host):
    prompt = prompts.one_step("plain", 0)
    for name in ("inject", "recover"):
        prompt[name]["inputs"]["model"] = ["toy", 0]
    refuses(host, prompt, "nothing to train", "SRPO Trainer")
