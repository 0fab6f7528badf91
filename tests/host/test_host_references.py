"""Photos with references on the real host: what each model makes of them, alone and in a batch."""

from types import SimpleNamespace

import families
import prompts
import pytest
import torch
from families import FAMILIES
from host_server import HostError
from in_process import new_flow, pack_module
from PIL import Image
from safetensors.torch import load_file

from srpo_core.data.photo_latents import REFERENCES
from srpo_core.run.batch_check import held_against_singles
from srpo_core.run.draws import Batching

EDITING = ("FLUX.1 Kontext", "FLUX.2 dev, reference", "Qwen-Image-Edit", "OmniGen2, reference")
BY_NAME = {family.name: family for family in FAMILIES}


class Pairs:
    """Two photos, each with its reference, in a family's latents; as `Photos`, but for the files."""

    has_references = True

    def __init__(self, family):
        self.family = family
        self.prompts = ["first", "second"]
        self.references = [families.latent(family, seed=10 + i) for i in range(2)]

    def prepare(self, indices):
        pass

    def content(self):
        return self.prompts

    def shape(self, index):
        return self.family.latent

    def cond_shape(self, index):
        return 0

    def latents(self, indices):
        return torch.cat([families.latent(self.family, i) for i in indices])

    def captions(self, indices):
        parts = [families.prompt(self.family, i)[0] for i in indices]
        extra = {name: value for name, value in parts[0][1].items() if name != REFERENCES}
        batched = {
            name: torch.cat([part[1][name] for part in parts]) if isinstance(value, torch.Tensor) else value
            for name, value in extra.items()
        }
        return [[torch.cat([part[0] for part in parts]), batched]]

    def cond(self, indices):
        ((context, extra),) = self.captions(indices)
        return [[context, extra | {REFERENCES: [torch.cat([self.references[i] for i in indices])]}]]


class FirstOfAll(Pairs):
    """A batch gets the first one's references, as from a model that knows no others."""

    def cond(self, indices):
        ((context, extra),) = super().cond(indices)
        return [[context, extra | {REFERENCES: [self.references[indices[0]]]}]]


def flow_of(family):
    return new_flow(families.patcher(family))


def held(flow, pairs):
    """At once afterwards, and why."""
    batching = Batching(shape=pairs.family.latent, batch=2, at_once=2)
    training = pack_module("srpo_core.run.training").Training(
        flow=flow, decoder=None, terms=[], dataset=pairs, batching=batching
    )
    now, reason = held_against_singles(training, range(1), set())
    return now.batching.at_once, reason


@pytest.mark.parametrize("name", EDITING)
def test_each_of_a_batch_has_its_own_reference(pack, name):
    """Or the batch check finds that it fails, and they go one at a time."""
    pairs = Pairs(BY_NAME[name])
    flow = flow_of(pairs.family)
    pack("nodes.host.references").check_takes_references(flow, pairs, set())
    x = pairs.latents([0, 1])
    sigma = torch.full((2,), 0.9)
    alone = torch.cat([flow.sampled_velocity(x[i : i + 1], sigma[:1], pairs.cond([i])) for i in range(2)])
    at_once, reason = held(flow, pairs)
    if reason:
        assert name.startswith("OmniGen2") and at_once == 1 and "it fails" in reason
    else:
        torch.testing.assert_close(flow.sampled_velocity(x, sigma, pairs.cond([0, 1])), alone, atol=1e-5, rtol=1e-4)
        swapped = Pairs(pairs.family)
        swapped.references.reverse()
        other = flow.sampled_velocity(x, sigma, swapped.cond([0, 1]))
        assert ((other - alone).norm() / alone.norm()).item() > 0.01, "the reference counts"


@pytest.mark.parametrize("name", ["Qwen-Image-Edit"])
def test_a_batch_in_which_all_get_the_firsts_reference_is_caught(pack, name):
    at_once, reason = held(flow_of(BY_NAME[name]), FirstOfAll(BY_NAME[name]))
    assert at_once == 1 and "they differ by" in reason


@pytest.mark.parametrize(
    "name, said",
    [
        ("SD3.5", "SD3 takes none: what it makes of a photo is the same"),
        ("AuraFlow", "AuraFlow takes none"),
        ("Wan 2.1", "WAN21 takes none"),
        ("FLUX.1 Fill", "with which Flux fails: it makes no edits"),
        ("Lumina 2", "with which Lumina2 fails"),
    ],
)
def test_a_model_that_takes_no_reference_is_refused(pack, name, said):
    check = pack("nodes.host.references").check_takes_references
    checked = set()
    flow = flow_of(BY_NAME[name])
    with pytest.raises(ValueError, match=said) as refused:
        check(flow, Pairs(BY_NAME[name]), checked)
    assert 'Set references on SRPO Photos to "none"' in str(refused.value) and not checked
    check(flow, SimpleNamespace(has_references=False), checked)


def test_a_model_is_asked_once(pack, monkeypatch):
    check = pack("nodes.host.references").check_takes_references
    checked = set()
    flow = flow_of(BY_NAME["FLUX.1 Kontext"])
    check(flow, Pairs(BY_NAME["FLUX.1 Kontext"]), checked)
    monkeypatch.setattr(flow, "sampled_velocity", None)
    check(flow, Pairs(BY_NAME["FLUX.1 Kontext"]), checked)


def test_what_is_guided_away_from_has_the_same_reference(pack):
    """With one prompt at both ends, classifier-free guidance then changes nothing."""
    flow_model = pack("nodes.host.flow_model")
    pairs = Pairs(BY_NAME["FLUX.1 Kontext"])
    x = pairs.latents([0])
    sigma = torch.tensor([0.9])
    base = families.patcher(pairs.family)
    plain = flow_model.HostFlow(base).sampled_velocity(x, sigma, pairs.cond([0]))
    for edits in (True, False):
        flow = flow_model.HostFlow(base, cfg=4.0, negative=pairs.captions([0]), edits=edits)
        guided = flow.sampled_velocity(x, sigma, pairs.cond([0]))
        assert torch.allclose(guided, plain, atol=1e-4) is edits
    own = pack("nodes.host.guiding").with_references_of(pairs.cond([0]), pairs.cond([1]))
    assert own[0][1][REFERENCES][0] is not pairs.references[0]
    torch.testing.assert_close(own[0][1][REFERENCES][0], pairs.references[1])


# On a running host


def graph(run: str, updates: int, **photos) -> dict:
    prompt = prompts.train(run, updates, batch=2)
    inputs = {"clip": ["toy", 1], "vae": ["toy", 2], "width": 64, "height": 64, "default_caption": ""}
    prompt["prompts"] = prompts.node("SRPO_Photos", **inputs | {"folder": "after", "references": "before"} | photos)
    return prompt


@pytest.fixture
def folders(host):
    for folder in ("before", "after"):
        (host.base / "input" / folder).mkdir(exist_ok=True)
        for i in range(3):
            noise = Image.effect_noise((64, 64), 20 + 40 * i + 20 * (folder == "after"))
            noise.convert("RGB").save(host.base / f"input/{folder}/{i}.png")


def state(host, run: str) -> dict:
    return load_file(host.base / "output/srpo" / run / "state.safetensors")


def test_a_run_on_pairs_goes_on_as_if_it_had_not_stopped(host, folders):
    """And learns something else than without the references."""
    host.run(graph("edit once", 2))
    for _ in range(2):
        host.run(graph("edit twice", 1))
    host.run(graph("no edit", 2, references="none"))
    once, twice, without = (state(host, run) for run in ("edit once", "edit twice", "no edit"))
    assert all(torch.equal(twice[key], value) for key, value in once.items())
    assert any(not torch.equal(without[key], value) for key, value in once.items())


def test_sentences_for_references_that_do_not_fit(host, folders):
    def said(**photos):
        with pytest.raises(HostError) as refused:
            host.run(graph("edit wrong", 1, **photos))
        return str(refused.value)

    assert 'no folder "nowhere"' in said(references="nowhere")
    assert "neither inside the other" in said(references="after")
    assert "Tokenizer) read no pictures" in said(encoder_sees_reference=True)
    (host.base / "input/before/2.png").rename(host.base / "input/before/two.png")
    assert "1 of 3 photos have no reference" in said()
    (host.base / "input/before/two.png").rename(host.base / "input/before/2.png")
