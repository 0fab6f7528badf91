"""The blueprints that ship: what `blueprints.py` folds."""

from blueprints import Blueprint, Open
from make_workflows import BLUE, BROWN, GREEN, OCHRE, PURPLE, Group, Node, Workflow
from shipped_notes import FLUX_PROMPTS, STEP_BLUEPRINT_NOTE, TRAIN_BLUEPRINT_NOTE
from shipped_toy import GUIDANCE, TRAIN_HEIGHT


def same(name: str, key: str, input: str | int = "") -> Open:
    """An end of one node, by default the input that is called like the end."""
    return Open(name, ((key, name if input == "" else input),))


STEP = Blueprint(
    description="One update of SRPO: noise is added to a picture, taken away again in one step of the model, the "
    "result scored with both words, and the adapter moved.",
    workflow=Workflow(
        note=STEP_BLUEPRINT_NOTE,
        note_size=(380, 420),
        groups=[
            Group("1. Inject", OCHRE, 260, [Node("inject", "SRPO_NoisePriorInject")]),
            Group("2. and 3. Recover", BROWN, 260, [Node("recover", "SRPO_OneStepRecover", {"noised": ("inject", 0)})]),
            Group(
                "4. Score, 5. Update",
                PURPLE,
                300,
                [
                    Node("objective", "SRPO_Objective"),
                    Node("reward", "SRPO_Reward", {"recovered": ("recover", 0), "objective": ("objective", 0)}),
                    Node("step", "SRPO_TrainStep", {"rewards.reward0": ("reward", 0)}),
                ],
            ),
        ],
    ),
    inputs=[
        same("trainer", "step"),
        Open("model", (("inject", "model"), ("recover", "model"))),
        same("conditioning", "recover", "positive"),
        same("latent", "inject"),
        same("noise", "inject"),
        same("vae", "reward"),
        same("reward", "reward"),
        same("prompt", "reward"),
        same("positive words", "objective", "positive"),
        same("negative words", "objective", "negative"),
    ],
    outputs=[
        same("trainer", "step", 0),
        same("loss", "step", 1),
        same("words gap", "reward", 1),
        same("image", "reward", 2),
        same("model", "step", 2),
        same("summary", "step", 3),
    ],
)

TRAIN = Blueprint(
    description="Trains a LoRA on FLUX with SRPO: towards the positive words, on pictures that it makes itself.",
    workflow=Workflow(
        note=TRAIN_BLUEPRINT_NOTE,
        note_size=(380, 420),
        groups=[
            Group("1. The run", BLUE, 300, [Node("trainer", "SRPO_Trainer")]),
            Group(
                "2. What to teach",
                GREEN,
                360,
                [
                    Node("prompts", "SRPO_Prompts", {"text": FLUX_PROMPTS}, height=300),
                    Node("objective", "SRPO_Objective"),
                ],
            ),
            Group(
                "3. Train",
                OCHRE,
                460,
                [
                    Node(
                        "train",
                        "SRPO_Train",
                        {
                            "trainer": ("trainer", 0),
                            "dataset": ("prompts", 0),
                            "objective": ("objective", 0),
                            "guidance": GUIDANCE,
                        },
                        height=TRAIN_HEIGHT,
                    )
                ],
            ),
            Group("4. Use", PURPLE, 300, [Node("lora", "LoraModelLoader", {"lora": ("train", 1)})]),
        ],
    ),
    inputs=[
        Open("model", (("trainer", "model"), ("lora", "model"))),
        same("clip", "prompts"),
        same("vae", "train"),
        same("reward", "train"),
        same("run_name", "trainer"),
        same("learning_rate", "trainer"),
        same("prompts", "prompts", "text"),
        same("positive words", "objective", "positive"),
        same("negative words", "objective", "negative"),
        same("updates", "train"),
        same("width", "train"),
        same("height", "train"),
        same("batch", "train"),
    ],
    outputs=[
        same("trained model", "lora", 0),
        same("lora", "train", 1),
        same("loss map", "train", 2),
        same("samples", "train", 3),
        same("summary", "train", 4),
    ],
)

BLUEPRINTS = {"One SRPO step": STEP, "Train FLUX with SRPO": TRAIN}
