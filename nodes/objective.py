"""SRPO_Objective: what the reward is asked."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..srpo_core.algorithm.control_words import PRESETS
from ..srpo_core.algorithm.objective import BRANCHES, ORDERS, Objective, Strength, parse_words
from .checked import answer_of, check_choice, checked
from .inputs import settings_of
from .sockets import CATEGORY, ObjectiveType

DEFAULT = Objective()
TYPED = "as typed"


def strength_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=-1.0, max=10.0, step=0.001, tooltip=tooltip)


def labelled(label: str, words: Sequence[str]) -> str:
    """Words as they are typed, below a line that says what they are: the canvas shows no name of a box of text."""
    return "\n".join([f"# {label}", *words])


class ObjectiveNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_Objective",
            display_name="SRPO Objective",
            category=CATEGORY,
            description="Which words the reward shall be steered by, and how hard. The defaults are the published "
            "ones for realism with HPS.",
            search_aliases=["control words", "realism", "photo", "style", "negative words", "srpo"],
            inputs=[
                io.String.Input(
                    "positive",
                    multiline=True,
                    default=labelled("positive words: what pictures shall become", DEFAULT.positive),
                    placeholder="Positive words, one per line",
                    tooltip="What pictures shall become: words for the reward, one per line, one after the other by "
                    "update. The model never sees them.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default=labelled("negative words: what they shall stop being", DEFAULT.negative),
                    placeholder="Negative words, one per line",
                    tooltip='What pictures shall stop being, one per line. "Painting" is strong against an oily look.',
                ),
                strength_input(
                    "reward_low_noise",
                    DEFAULT.denoise_strength.low_noise,
                    "How much more the positive word weighs in the denoise branch, at the low-noise end of the window.",
                ),
                strength_input(
                    "reward_high_noise",
                    DEFAULT.denoise_strength.high_noise,
                    "How much more the positive word weighs in the denoise branch, at the high-noise end of the "
                    "window.",
                ),
                strength_input(
                    "penalty_low_noise",
                    DEFAULT.inversion_strength.low_noise,
                    "How much more the negative word weighs in the inversion branch, at the low-noise end. More of it "
                    "holds colours back.",
                ),
                strength_input(
                    "penalty_high_noise",
                    DEFAULT.inversion_strength.high_noise,
                    "How much more the negative word weighs in the inversion branch, at the high-noise end of the "
                    "window.",
                ),
                io.Float.Input(
                    "threshold",
                    default=DEFAULT.threshold,
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    tooltip="The relative reward, in the reward's own units, above which a picture is good enough and "
                    "trains nothing.",
                ),
                io.Combo.Input(
                    "branches",
                    options=list(BRANCHES),
                    default=DEFAULT.branches,
                    tooltip="Which branches are trained: both in SRPO. Denoise alone tends to stay oily; inversion "
                    "alone only unlearns.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=DEFAULT.order,
                    optional=True,
                    tooltip="How the words follow each other: one after the other by update, as published, or at "
                    "random.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[TYPED, *PRESETS],
                    default=TYPED,
                    optional=True,
                    tooltip='A look with its words; anything but "as typed" takes the place of both lists above.',
                ),
            ],
            outputs=[ObjectiveType.Output(display_name="objective", tooltip="The words and strengths, for a reward.")],
        )

    @classmethod
    def validate_inputs(
        cls, positive: str | None = None, negative: str | None = None, preset: str | None = TYPED
    ) -> bool | str:
        """The preset, or the words where they count, as far as they are chosen on the node itself; links give None."""
        return True if preset is None else answer_of(check_words, positive, negative, preset)

    @classmethod
    @checked
    def execute(cls, positive: str, negative: str, preset: str, **inputs: Any) -> io.NodeOutput:
        words = (parse_words(positive), parse_words(negative)) if preset == TYPED else PRESETS[preset]
        objective = settings_of(
            Objective,
            inputs,
            positive=words[0],
            negative=words[1],
            denoise_strength=Strength(low_noise=inputs["reward_low_noise"], high_noise=inputs["reward_high_noise"]),
            inversion_strength=Strength(low_noise=inputs["penalty_low_noise"], high_noise=inputs["penalty_high_noise"]),
        )
        return io.NodeOutput(objective)


def check_words(positive: str | None, negative: str | None, preset: str):
    """Raises ValueError for a preset that is none and, where words count, for lists of them that can't be."""
    check_choice("preset", preset, [TYPED, *PRESETS])
    if preset == TYPED:
        words = {"positive": positive, "negative": negative}
        Objective(**{side: parse_words(text) for side, text in words.items() if text is not None})
