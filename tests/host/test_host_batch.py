"""Mochi, of which the host makes other pictures in a batch than alone, without a word: one at a time, and said.

A prompt's tokens reach its pictures as far as the mask counts them, and of a batch all tokens are counted together.
"""

import re
from dataclasses import replace

import families
import pytest
import torch
from families import FAMILIES
from in_process import new_flow

MOCHI = next(family for family in FAMILIES if family.name == "Mochi")
TOKENS = (2, 3)  # of six, the others are padding
SAID = r"two together do not come out as each alone, they differ by \d+%"


class Prompts:
    """Two prompts of Mochi, also as one batch."""

    prompts = ("first", "second")

    def prepare(self, indices):
        pass

    def content(self):
        return self.prompts

    def cond_shape(self, index):
        return 0

    def cond(self, indices):
        texts = torch.cat([families.prompt(MOCHI, index)[0][0] for index in indices])
        mask = torch.stack([torch.arange(texts.shape[1]) < TOKENS[index] for index in indices])
        return [[texts, {"attention_mask": mask.long()}]]


@pytest.fixture(scope="module")
def samples(pack):
    return pack("nodes.host.samples").FixedSamples(
        dataset=Prompts(),
        sampling=pack("nodes.host.flow_model").Sampling(steps=2),
        shape=MOCHI.latent,
        indices=[0, 1],
        seeds=[5, 6],
        at_once=2,
    )


def test_a_run_trains_one_at_a_time(pack):
    check = pack("srpo_core.run.batch_check")
    batching = pack("srpo_core.run.draws").Batching(shape=MOCHI.latent, batch=2, at_once=2, sampled_at_once=2)
    flow = new_flow(families.patcher(MOCHI))
    training = pack("srpo_core.run.training").Training(
        flow=flow, decoder=None, terms=[], dataset=Prompts(), batching=batching
    )
    now, reason = check.held_against_singles(training, range(1), set())
    assert (now.batching.at_once, now.batching.sampled_at_once, now.batching.batch) == (1, 1, 2)
    assert re.search(SAID, check.one_at_a_time(reason))


def test_previews_and_compare_sample_one_at_a_time(pack, samples):
    model = families.patcher(MOCHI)
    found = samples.sample(model)
    alone = replace(samples, at_once=1).sample(model)
    assert re.search(SAID, found.alone) and not alone.alone
    assert [len(latent) for latent in found.latents] == [1, 1]
    torch.testing.assert_close(torch.cat(found.latents), torch.cat(alone.latents), rtol=0, atol=0)


def test_without_the_check_they_would_be_other_pictures(pack, samples, monkeypatch):
    model = families.patcher(MOCHI)
    expected = torch.cat(samples.sample(model).latents)
    monkeypatch.setattr(pack("nodes.host.samples"), "difference", lambda *_: None)
    (together,) = replace(samples).sample(model).latents
    off = (together - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert off.max() > 0.02
