"""The workflows that ship: what `make_workflows.py` lays out."""

from make_workflows import Group, Node, Workflow

BLUE = "#3f789e"
GREEN = "#8A8"
OCHRE = "#b58b2a"
BROWN = "#b06634"
PURPLE = "#a1309b"

TOY_PROMPTS = """\
a red circle on grass
a yellow square on wood
a green triangle on snow
a cyan star on sand
a blue circle on sand
a purple square on grass
a red triangle on wood
a yellow star on snow
a green circle on snow
a cyan square on sand
a blue triangle on grass
a purple star on wood
a red square on wood
a yellow triangle on snow
a green star on sand
a cyan circle on grass
a blue square on grass
a purple triangle on wood
a red star on snow
a yellow circle on sand
a green square on sand
a cyan triangle on grass
a blue star on wood
a purple circle on snow"""

TOY_NOTE = """\
# Toy FLUX in one minute

**Press Run.** Nothing to download, no files to put anywhere: the models in this graph come with the pack. Two CPU cores are enough.

A tiny FLUX paints 64x64 pictures of simple scenes. It was trained to make glossy *renders*; about one picture in ten looks like a *photo*. SRPO teaches it to take photos, from words alone.

**What you will see**
- On *SRPO Train*, while it runs: pictures of fixed seeds, before beside now, and the curves.
- At the right, when it is done: the same pictures, first all before, then all after, and the loss.
- In `output/loras/srpo/toy/`: a LoRA.

**What to try then**
- Run again: training goes on from where it stopped.
- Change the words in *SRPO Objective* and give the run a new name in *SRPO Trainer*.
- Swap the positive and the negative words: the photos vanish.

The settings suit the toy: its reward is a small CLIP, so the words weigh more than published, pictures that already look like photos are left alone (*threshold*), the denoise branch does it alone, and ten steps make a rollout. For FLUX leave *SRPO Objective* at its defaults.

**Do not read the reward as success.** SRPO need not raise it. Look at the pictures, and at the words-gap: how much more the reward likes "photo" than "render".
"""

TOY = Workflow(
    note=TOY_NOTE,
    groups=[
        Group(
            "1. Models, run and rollouts",
            BLUE,
            300,
            [
                Node("toy", "SRPO_ToyModels"),
                Node("trainer", "SRPO_Trainer", {"model": ("toy", 0), "run_name": "toy", "learning_rate": 1.6e-4}),
                Node("rollouts", "SRPO_Rollouts", {"steps": 10, "guidance": 3.5}),
            ],
        ),
        Group(
            "2. What to teach",
            GREEN,
            380,
            [
                Node("prompts", "SRPO_Prompts", {"clip": ("toy", 1), "text": TOY_PROMPTS}, height=240),
                Node(
                    "objective",
                    "SRPO_Objective",
                    {
                        "reward_low_noise": 1.0,
                        "reward_high_noise": 1.0,
                        "threshold": 0.75,
                        "branches": "denoise",
                    },
                ),
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
                        "vae": ("toy", 2),
                        "reward": ("toy", 3),
                        "objective": ("objective", 0),
                        "updates": 42,
                        "width": 64,
                        "height": 64,
                        "batch": 32,
                        "memory": "by hand",
                        "memory.at_once": 32,
                        "rollouts": ("rollouts", 0),
                    },
                    height=960,
                )
            ],
        ),
        Group(
            "4. Look",
            PURPLE,
            400,
            [
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
                    title="First all before, then all after",
                    height=420,
                ),
                Node("loss", "LossGraphNode", {"loss": ("train", 2)}, title="The loss", height=300),
            ],
        ),
    ],
)

STEP_NOTE = """\
# One SRPO step, node by node

**Press Run**, and one update is made. **Press it again** for the next: the noise seed goes up by one each time, and the run goes on. No files are needed: the toy models come with the pack.

*SRPO Train* does just this in a loop. Here each stage is a node that you can look into and rewire.

- **0. Sample** a clean latent from noise, with the model as it is now. Stock nodes.
- **1. Inject**: put *that same noise* back, nearly all of it. Two noise levels are drawn, one for each branch.
- **2. and 3. Recover**: one step of the model, then take the known noise out. Because the noise is known, the picture comes back clean even from 95% noise. What the model got wrong is what is left.
- **4. Score**: ask the reward with a positive and with a negative word. The words go to the reward only.
- **5. Update**: pull the gradient back through the model into the adapter.

**What you will see**: four pictures from left to right: sampled, noisy, recovered, and what the reward saw. On *Train Step*, the number of the update and the words-gap.

**What to try**
- *position* on *Noise-Prior Inject*: 999 is the noisy end of the window, 1 the other.
- Your own FLUX: put *Load Diffusion Model*, *DualCLIPLoader* and *Load VAE* in place of the toy, and another size in the empty latent.
- More pictures an update: copy the stages, and connect their rewards to *Train Step*. It grows an input for each.
"""


def looked_at(name: str, latent: tuple[str, int], title: str) -> list[Node]:
    """The nodes that show a latent of the toy's."""
    return [
        Node(f"{name} decoded", "VAEDecode", {"samples": latent, "vae": ("toy", 2)}),
        Node(f"{name} shown", "PreviewImage", {"images": (f"{name} decoded", 0)}, title=title, height=260),
    ]


STEP = Workflow(
    note=STEP_NOTE,
    note_size=(380, 860),
    groups=[
        Group(
            "Models, run and words",
            BLUE,
            240,
            [
                Node("toy", "SRPO_ToyModels"),
                Node("trainer", "SRPO_Trainer", {"model": ("toy", 0), "run_name": "step by step"}),
                Node("objective", "SRPO_Objective"),
            ],
        ),
        Group(
            "Prompt and noise",
            GREEN,
            240,
            [
                Node("prompt", "PrimitiveStringMultiline", {"value": "a red circle on grass"}, "Prompt"),
                Node("text", "CLIPTextEncode", {"clip": ("toy", 1), "text": ("prompt", 0)}),
                Node("guidance", "FluxGuidance", {"conditioning": ("text", 0)}),
                Node("noise", "RandomNoise", {"noise_seed": 1, "after_generate": "increment"}, height=110),
                Node("empty", "EmptySD3LatentImage", {"width": 64, "height": 64}),
            ],
        ),
        Group(
            "0. Sample",
            BLUE,
            240,
            [
                Node("guider", "BasicGuider", {"model": ("trainer", 1), "conditioning": ("guidance", 0)}),
                Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
                Node("sigmas", "BasicScheduler", {"model": ("trainer", 1), "scheduler": "simple", "steps": 25}),
                Node(
                    "sample",
                    "SamplerCustomAdvanced",
                    {
                        "noise": ("noise", 0),
                        "guider": ("guider", 0),
                        "sampler": ("sampler", 0),
                        "sigmas": ("sigmas", 0),
                        "latent_image": ("empty", 0),
                    },
                ),
                *looked_at("sampled", ("sample", 0), "Sampled"),
            ],
        ),
        Group(
            "1. Inject",
            OCHRE,
            240,
            [
                Node(
                    "inject",
                    "SRPO_NoisePriorInject",
                    {"model": ("trainer", 1), "latent": ("sample", 0), "noise": ("noise", 0)},
                ),
                *looked_at("noisy", ("inject", 1), "Noisy"),
            ],
        ),
        Group(
            "2. and 3. Recover",
            BROWN,
            240,
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
            240,
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
                ),
                Node("gap", "PreviewAny", {"source": ("reward", 1)}, title="Words-gap", height=110),
                Node("scored", "PreviewImage", {"images": ("reward", 2)}, title="What the reward saw", height=260),
                Node(
                    "step", "SRPO_TrainStep", {"trainer": ("trainer", 0), "rewards.reward0": ("reward", 0)}, height=150
                ),
                Node("loss", "PreviewAny", {"source": ("step", 1)}, title="Loss", height=110),
            ],
        ),
    ],
)

WORKFLOWS = {"1 Toy FLUX in one minute": TOY, "4 One SRPO step, node by node": STEP}
