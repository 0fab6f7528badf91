"""What a run refuses to learn from."""

from collections.abc import Mapping, Sequence

from torch.nn import Parameter

from ..algorithm.metrics import Summary
from ..algorithm.step import Score
from ..algorithm.terms import NONE_TRAINS


def check_belongs(score: Score, parameters: Mapping[str, Parameter], update: int, run: str):
    """Raises ValueError unless the score is of the adapter with these parameters, as it is before this update."""
    its = set(map(id, score.recovered.parameters.values()))
    if not its:
        raise ValueError(
            f'A reward is of a MODEL with nothing to train, so the run "{run}" can learn nothing from it: connect One-'
            "Step Recover to the MODEL output of SRPO Trainer."
        )
    if not its.issuperset(map(id, parameters.values())):
        raise ValueError(
            f'A reward is of another run\'s MODEL, so the run "{run}" can learn nothing from it: connect One-Step '
            "Recover to the MODEL output of the same SRPO Trainer as Train Step."
        )
    if score.update != update:
        raise ValueError(
            f'A reward was made for update {score.update} of the run "{run}", and the next one is {update}: its '
            "gradient belongs to other weights. Connect all rewards of one update to one Train Step, and queue again."
        )


def check_reached(summaries: Sequence[Summary], parameters: Mapping[str, Parameter], run: str):
    """Raises ValueError where no score trains, and where there were gradients to pull and none reached a parameter.

    Where all hinges are met there is nothing to pull, and that is an update like any other.
    """
    if not summaries:
        raise ValueError(f'There is no reward from which the run "{run}" could learn: connect at least one.')
    if not any(each.trains for each in summaries):
        raise ValueError(NONE_TRAINS)
    pulls = any(bool(each.pulls) for each in summaries)
    if pulls and not any(p.grad is not None and bool(p.grad.any()) for p in parameters.values()):
        raise ValueError(
            f'The rewards have a gradient, but none of it reached what the run "{run}" trains, so nothing was changed: '
            "the MODEL that was asked does not use the adapter. Connect the MODEL output of SRPO Trainer itself, "
            "without nodes that bypass or replace its layers."
        )
