"""Models that write into what autograd saved: they train from copies, and those that don't pay nothing for it."""

import families
import pytest
import torch
from in_process import new_adapter, new_flow

from srpo_core.run.memory import LiveBytes

SIGMA = torch.tensor([0.8])


def family(name):
    return next(family for family in families.FAMILIES if family.name == name)


def adapted(name):
    """The family's MODEL with an adapter, its flow, and what it is asked."""
    found = family(name)
    base = families.patcher(found)
    adapter = new_adapter(base, rank=2)
    model = adapter.attach(base)
    return model, adapter, new_flow(model), (families.latent(found), SIGMA, families.prompt(found))


def pulled(flow, adapter, asked):
    """The adapter's gradients of one way back that began with none."""
    for parameter in adapter.parameters.values():
        parameter.grad = None
    flow.velocity(*asked).pull(torch.cos(9 * asked[0]))
    return [parameter.grad for parameter in adapter.parameters.values()]


@pytest.mark.parametrize("name, writes", [("LTXV", True), ("FLUX.1 dev", False)])
def test_only_what_autograd_refused_keeps_copies(pack, caplog, monkeypatch, name, writes):
    writing = pack("nodes.host.gradients.writing")
    copies = []
    copy = writing.copy
    monkeypatch.setattr(writing, "copy", lambda tensor: copies.append(tensor.shape) or copy(tensor))
    model, adapter, flow, asked = adapted(name)
    first = pulled(flow, adapter, asked)
    assert bool(copies) == writes
    assert [r.message.startswith("LTXV writes into") for r in caplog.records] == [True] * writes
    again = pulled(flow, adapter, asked)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(caplog.records) == writes, "said once"


def test_where_gradients_are_there_already_the_update_ends_and_the_next_one_trains(pack):
    """Half of the refused ones are added to them by then."""
    _, adapter, flow, asked = adapted("LTXV")
    parameters = list(adapter.parameters.values())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="LTXV writes into .* Queue it again"):
        flow.velocity(*asked).pull(torch.cos(9 * asked[0]))
    assert all(gradient is not None for gradient in pulled(flow, adapter, asked))


def test_the_memory_of_a_model_that_writes_is_known_before_it_ran(pack):
    """Counted in small, where what is beside the blocks weighs more than in large."""
    model, adapter, flow, (_, sigma, cond) = adapted("LTXV")
    x = torch.randn(1, 128, 1, 32, 32)
    flow_of = pack("nodes.host.memory_estimate")._flow
    on_copies = pack("nodes.host.gradients.writing").or_on_copies
    _, estimated, _ = on_copies(model.model, lambda: flow_of(model, x, cond, flow.differentiable.settings))
    with LiveBytes() as count:
        pulled(flow, adapter, (x, sigma, cond))
    assert estimated == pytest.approx(count.peak, rel=0.25)
