"""The order in which blocks are fetched where the host streams them: stood in for, as that needs a GPU."""

import pytest
import torch
from oracle import host_model, random_flux, with_adapter

COND = [[torch.randn(1, 6, 32), {"pooled_output": torch.randn(1, 24)}]]
X = torch.randn(1, 16, 8, 8)
SIGMA = torch.tensor([0.9])


@pytest.fixture
def fetched(pack, monkeypatch):
    """What was fetched, None where the last is let go; the queue is the host's: what was before, and what is next."""
    from comfy import model_prefetch

    order = []

    def make(queue, device, options):
        model_prefetch.PREFETCH_QUEUES.append([None, *queue, None])
        return model_prefetch.PREFETCH_QUEUES[-1]

    def pop(queue, device, module):
        before, wanted = queue
        assert before is (order[-1] if order else None) and wanted is module
        queue.pop(0)
        order.append(module)

    monkeypatch.setattr(model_prefetch, "make_prefetch_queue", make)
    monkeypatch.setattr(model_prefetch, "prefetch_queue_pop", pop)
    yield order
    assert not model_prefetch.PREFETCH_QUEUES


@pytest.fixture
def flow(pack):
    host_flow = pack("nodes.host.flow_model")
    return host_flow.HostFlow(with_adapter(host_model(random_flux()))[0], host_flow.Sampling(steps=2))


def test_blocks_are_fetched_in_the_order_they_run_in(flow, fetched):
    model = flow.patcher.model.diffusion_model
    blocks = [*model.double_blocks, *model.single_blocks]
    flow.rollout(X, COND, 0)
    assert fetched == [*blocks, *blocks, None]
    fetched.clear()
    velocity = flow.velocity(X, SIGMA, COND)
    assert fetched == [*blocks, None]
    fetched.clear()
    velocity.pull(torch.ones_like(X))
    assert fetched == [*reversed(blocks), None]


def test_the_last_is_let_go_after_an_error(flow, fetched, monkeypatch):
    part = flow.patcher.model.diffusion_model.single_blocks[0]

    def fails(*_):
        raise KeyError

    monkeypatch.setattr(type(part.modulation), "forward", fails)
    with pytest.raises(KeyError):
        flow.velocity(X, SIGMA, COND)
    assert fetched[-1] is None and len(fetched) > 1


def test_nothing_is_fetched_where_nothing_is_streamed(pack, flow):
    with pack("nodes.host.gradients.prefetch").fetching(flow.patcher) as fetch:
        fetch(flow.patcher.model.diffusion_model.single_blocks[0])
    assert not flow.patcher.is_dynamic()
