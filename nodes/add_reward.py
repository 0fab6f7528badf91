"""SRPO_AddReward: one more reward for SRPO Train."""

from comfy_api.latest import io

from ..srpo_core.algorithm.objective import Objective
from ..srpo_core.algorithm.terms import Term
from ..srpo_core.rewards import Reward
from .checked import checked
from .inputs import reward_name, weighing_inputs
from .sockets import CATEGORY, ObjectiveType, RewardModelType, RewardsType


class AddReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_AddReward",
            display_name="Add Reward",
            category=CATEGORY,
            description="One more reward for SRPO Train, with words and strengths of its own. Where several train, "
            "each is divided by the spread of its scores in the run, so that equal weights mean equal influence. With "
            "the weight 0 it only watches: an honest witness that the run can't please.",
            search_aliases=["several rewards", "combine rewards", "reward ensemble", "srpo"],
            inputs=[
                RewardModelType.Input("reward", tooltip="The reward model that scores the pictures too."),
                ObjectiveType.Input("objective", tooltip="The words and strengths for this reward."),
                *weighing_inputs(),
                RewardsType.Input(
                    "more_rewards", optional=True, tooltip="The rewards of another Add Reward, for a third one."
                ),
            ],
            outputs=[RewardsType.Output(display_name="more rewards", tooltip="All of them, for SRPO Train.")],
        )

    @classmethod
    @checked
    def execute(
        cls, reward: Reward, objective: Objective, weight: float, name: str, more_rewards: list[Term] | None
    ) -> io.NodeOutput:
        term = Term(reward=reward, objective=objective, weight=weight, name=reward_name(name))
        return io.NodeOutput([*(more_rewards or ()), term])
