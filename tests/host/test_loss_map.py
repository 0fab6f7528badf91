"""The loss map that SRPO Train hands out, in the core's own plot."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

losses = st.lists(st.one_of(st.floats(0, 1e30), st.sampled_from([0.0, 0.7, math.nan, math.inf])), max_size=6)


@pytest.fixture(scope="module")
def plot(pack):
    pack("nodes.outputs")
    from comfy_extras.nodes_train import LossGraphNode

    return lambda loss: LossGraphNode.execute(loss, "loss")


@given(losses)
def test_every_history_has_a_loss_map_that_the_plot_takes(pack, found):
    (mapped,) = pack("nodes.outputs").loss_map([{"loss": loss} for loss in found]).values()
    finite = [loss for loss in found if math.isfinite(loss)]
    assert all(math.isfinite(loss) for loss in mapped) and min(mapped) < max(mapped)
    assert mapped[: len(finite)] == finite
    if len(set(finite)) > 1:
        assert mapped == finite  # nothing is made up where there is something to see
    else:
        assert max(mapped) == math.nextafter(min(mapped), math.inf)  # the least that the plot can divide by


@pytest.mark.parametrize("found", [[0.4], [0.0] * 3, [math.nan], [], [0.2, math.nan, 0.2], [0.3, 0.1, math.inf]])
def test_the_cores_plot_draws_it(pack, plot, found):
    plot(pack("nodes.outputs").loss_map([{"loss": loss} for loss in found]))
