"""The workflows that run as they ship, on the toy models."""

from make_workflows import BLUE, BROWN, GREEN, OCHRE, PURPLE, Group, Node, Workflow
from shipped_notes import STEP_NOTE, TOY_NOTE, TOY_PROMPTS

GUIDANCE = 3.5  # what FLUX is usually sampled with
TRAIN_HEIGHT = 1030  # with its card and its text in Nodes 2.0
SAYS = Node("says", "PreviewAny", {"source": ("train", 4)}, title="What became of it", height=180)

TOY = Workflow(
    note=TOY_NOTE,
    groups=[
        Group(
            "1. Models, run and rollouts",
            BLUE,
            260,
            [
                Node("toy", "SRPO_ToyModels"),
                Node("trainer", "SRPO_Trainer", {"model": ("toy", 0), "run_name": "toy", "learning_rate": 1.6e-4}),
                Node("rollouts", "SRPO_Rollouts", {"steps": 10, "guidance": GUIDANCE}),
            ],
        ),
        Group(
            "2. What to teach",
            GREEN,
            340,
            [
                Node("prompts", "SRPO_Prompts", {"clip": ("toy", 1), "text": TOY_PROMPTS}, height=420),
                Node(
                    "objective",
                    "SRPO_Objective",
                    {
                        "reward_low_noise": 1.0,
                        "reward_high_noise": 1.0,
                        "threshold": 0.75,
                        "branches": "denoise",
                    },
                    height=560,
                ),
            ],
        ),
        Group(
            "3. Train",
            OCHRE,
            530,
            [
                Node(
                    "train",
                    "SRPO_Train",
                    {
                        "trainer": ("trainer", 0),
                        "dataset": ("prompts", 0),
                        "vae": ("toy", 2),
                        "reward": ("toy", 3),
                        "objective": ("objective", 0),
                        "updates": 42,
                        "width": 64,
                        "height": 64,
                        "batch": 32,
                        "guidance": GUIDANCE,
                        "memory": "by hand",
                        "memory.at_once": 32,
                        "rollouts": ("rollouts", 0),
                    },
                    height=TRAIN_HEIGHT,
                ),
            ],
        ),
        Group(
            "4. Look",
            PURPLE,
            400,
            [
                SAYS,
                Node(
                    "enlarge",
                    "ImageScaleBy",
                    {"image": ("train", 3), "upscale_method": "nearest-exact", "scale_by": 4},
                    "Enlarge",
                ),
                Node(
                    "look",
                    "PreviewImage",
                    {"images": ("enlarge", 0)},
                    title="Before above, after below",
                    height=260,  # at this width four stand in a row
                ),
                Node("loss", "LossGraphNode", {"loss": ("train", 2)}, title="The loss", height=310),
            ],
        ),
    ],
)


def looked_at(name: str, latent: tuple[str, int], title: str, height: int = 200) -> list[Node]:
    """The nodes that show a latent of the toy's."""
    return [
        Node(f"{name} decoded", "VAEDecode", {"samples": latent, "vae": ("toy", 2)}),
        Node(f"{name} shown", "PreviewImage", {"images": (f"{name} decoded", 0)}, title=title, height=height),
    ]


def sampled(name: str, guider: str) -> Node:
    """What samples the one picture of `STEP` from its noise, by this guider."""
    inputs = {"noise": "noise", "guider": guider, "sampler": "sampler", "sigmas": "sigmas", "latent_image": "empty"}
    return Node(name, "SamplerCustomAdvanced", {to: (key, 0) for to, key in inputs.items()})


STEP = Workflow(
    note=STEP_NOTE,
    note_size=(308, 900),
    groups=[
        Group(
            "Models, run and words",
            BLUE,
            270,
            [
                Node("toy", "SRPO_ToyModels"),
                Node(
                    "trainer", "SRPO_Trainer", {"model": ("toy", 0), "run_name": "step by step", "learning_rate": 1e-3}
                ),
                Node("objective", "SRPO_Objective", height=520),
            ],
        ),
        Group(
            "Prompt, noise and sampler",
            GREEN,
            230,
            [
                Node("prompt", "PrimitiveStringMultiline", {"value": "a red circle on grass"}, "Prompt"),
                Node("text", "CLIPTextEncode", {"clip": ("toy", 1), "text": ("prompt", 0)}),
                Node("guidance", "FluxGuidance", {"conditioning": ("text", 0)}),
                Node("noise", "RandomNoise", {"noise_seed": 1, "after_generate": "increment"}, height=110),
                Node("empty", "EmptySD3LatentImage", {"width": 64, "height": 64}),
                Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
                Node("sigmas", "BasicScheduler", {"model": ("trainer", 1), "scheduler": "simple", "steps": 25}),
            ],
        ),
        Group(
            "0. Sample",
            BLUE,
            250,
            [
                Node("guider", "BasicGuider", {"model": ("trainer", 1), "conditioning": ("guidance", 0)}),
                sampled("sample", "guider"),
                *looked_at("sampled", ("sample", 0), "Sampled", 140),
            ],
        ),
        Group(
            "1. Inject",
            OCHRE,
            250,
            [
                Node(
                    "inject",
                    "SRPO_NoisePriorInject",
                    {"model": ("trainer", 1), "latent": ("sample", 0), "noise": ("noise", 0)},
                ),
                *looked_at("noisy", ("inject", 1), "Noisy", 140),
            ],
            under=True,
        ),
        Group(
            "2. and 3. Recover",
            BROWN,
            230,
            [
                Node(
                    "recover",
                    "SRPO_OneStepRecover",
                    {"model": ("trainer", 1), "positive": ("guidance", 0), "noised": ("inject", 0)},
                ),
                *looked_at("recovered", ("recover", 1), "Recovered: denoise"),
                *looked_at("inverted", ("recover", 2), "Recovered: inversion"),
            ],
        ),
        Group(
            "4. Score, 5. Update",
            PURPLE,
            230,
            [
                Node(
                    "reward",
                    "SRPO_Reward",
                    {
                        "reward": ("toy", 3),
                        "vae": ("toy", 2),
                        "recovered": ("recover", 0),
                        "objective": ("objective", 0),
                        "prompt": ("prompt", 0),
                    },
                    height=280,
                ),
                Node("gap", "PreviewAny", {"source": ("reward", 1)}, title="Words-gap", height=138),
                Node("scored", "PreviewImage", {"images": ("reward", 2)}, title="What the reward saw", height=160),
                Node(
                    "step", "SRPO_TrainStep", {"trainer": ("trainer", 0), "rewards.reward0": ("reward", 0)}, height=150
                ),
                Node("loss", "PreviewAny", {"source": ("step", 1)}, title="Loss", height=138),
            ],
        ),
        Group(
            "6. What the step changed",
            GREEN,
            230,
            [
                Node("guider after", "BasicGuider", {"model": ("step", 2), "conditioning": ("guidance", 0)}),
                sampled("sample after", "guider after"),
                *looked_at("after", ("sample after", 0), "After the update"),
            ],
        ),
        Group(
            "7. The difference",
            GREEN,
            230,
            [
                Node(
                    "difference",
                    "ImageBlend",
                    {
                        "image1": ("after decoded", 0),
                        "image2": ("sampled decoded", 0),
                        "blend_factor": 1.0,
                        "blend_mode": "difference",
                    },
                ),
                Node("difference shown", "PreviewImage", {"images": ("difference", 0)}, title="Lighter by", height=200),
            ],
            under=True,
        ),
    ],
)
