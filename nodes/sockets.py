"""The types our nodes exchange, and what they carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..srpo_core.algorithm.step import Noised, Recovered, Score

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TrainerType = io.Custom("SRPO_TRAINER")  # open_run.OpenRun
DatasetType = io.Custom("SRPO_DATASET")  # prompts.Prompts, srpo_core.data.photo_latents.Photos or mix.Mix
ObjectiveType = io.Custom("SRPO_OBJECTIVE")  # srpo_core.algorithm.objective.Objective
RewardModelType = io.Custom("SRPO_REWARD_MODEL")  # srpo_core.rewards.Reward
NoisedType = io.Custom("SRPO_NOISED")  # srpo_core.algorithm.step.Noised
RecoveredType = io.Custom("SRPO_RECOVERED")  # BothRecovered
RewardType = io.Custom("SRPO_REWARD")  # Rewarded
RewardsType = io.Custom("SRPO_REWARDS")  # list of srpo_core.algorithm.terms.Term
RolloutsType = io.Custom("SRPO_ROLLOUTS")  # rollouts.Rollouts
NoiseLevelsType = io.Custom("SRPO_NOISE_LEVELS")  # noise_levels.NoiseLevels
WatchType = io.Custom("SRPO_WATCH")  # watch.Watch
PreviewsType = io.Custom("SRPO_PREVIEWS")  # previews.PreviewSettings
OptimizerType = io.Custom("SRPO_OPTIMIZER")  # optimizer.Optimizer


@dataclass(frozen=True)
class BothRecovered:
    """Both branches' recovered latents, and what the stages after need to know.

    update: the number of the update that this will be part of; it picks the control words.
    """

    model: ModelPatcher
    noised: Noised
    branches: dict[str, Recovered]  # by the branch's name
    update: int


@dataclass(frozen=True)
class Rewarded:
    """The scores of both branches of these samples by one reward.

    normalised: whether its loss is yet to be divided by the reward's spread, as all rewards of an update know it.
    taught: what it asked for, see `taught_by`.
    """

    noised: Noised
    scores: list[Score]
    normalised: bool
    taught: list[dict[str, Any]]


CATEGORY = "training/SRPO"
