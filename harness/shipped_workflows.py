"""The workflows that ship: what `make_workflows.py` lays out."""

from dataclasses import replace

from make_workflows import BLUE, GREEN, OCHRE, PURPLE, Group, Node, Workflow
from shipped_notes import FLUX_PROMPTS, LOOK_NOTE, PHOTOS_NOTE, PROMPTS_NOTE
from shipped_toy import GUIDANCE, SAYS, STEP, TOY, TRAIN_HEIGHT

HUB = "https://huggingface.co"
FLUX_FILES = [
    Node(
        "unet",
        "UNETLoader",
        {"unet_name": "flux1-dev.safetensors", "weight_dtype": "fp8_e4m3fn"},
        files=(("diffusion_models", f"{HUB}/black-forest-labs/FLUX.1-dev/resolve/main/flux1-dev.safetensors"),),
    ),
    Node(
        "clip",
        "DualCLIPLoader",
        {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"},
        files=(
            ("text_encoders", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors"),
            ("text_encoders", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors"),
        ),
    ),
    Node(
        "vae",
        "VAELoader",
        {"vae_name": "ae.safetensors"},
        files=(("vae", f"{HUB}/black-forest-labs/FLUX.1-schnell/resolve/main/ae.safetensors"),),
        height=90,  # with its error where the file is missing
    ),
]
# Without an address: the front end offers it only for what a menu lacks, and ours lists what is published. Where
# the file is missing, Run says on the node which one, its size, from where, into which folder, or what to tick.
REWARD = Node("reward", "SRPO_LoadReward", {"file": "HPS_v2.1_compressed.pt"})
WORDS = Node("objective", "SRPO_Objective", height=460)


def flux(note: str, run: str, dataset: Node) -> Workflow:
    """FLUX.1-dev by stock loaders, trained on a dataset, to pictures before and after by a stock LoRA loader."""
    train = {
        "trainer": ("trainer", 0),
        "dataset": (dataset.key, 0),
        "vae": ("vae", 0),
        "reward": ("reward", 0),
        "objective": ("objective", 0),
        "guidance": GUIDANCE,
    }
    compare = {
        "model_before": ("unet", 0),
        "model_after": ("lora", 0),
        "dataset": (dataset.key, 0),
        "vae": ("vae", 0),
        "reward": ("reward", 0),
        "objective": ("objective", 0),
        "guidance": GUIDANCE,
        "prompts": 2,  # from two seeds each: as many pictures as of four, and their diversity
        "seeds": 2,
    }
    trainer = Node("trainer", "SRPO_Trainer", {"model": ("unet", 0), "run_name": run})
    return Workflow(
        note=note,
        note_size=(320, 1066),
        groups=[
            Group("1. Your files, and the run", BLUE, 280, [*FLUX_FILES, trainer]),
            Group("2. What to teach", GREEN, 340, [REWARD, dataset, WORDS]),
            Group("3. Train", OCHRE, 520, [Node("train", "SRPO_Train", train, height=TRAIN_HEIGHT)]),
            Group(
                "4. Before and after",
                PURPLE,
                400,
                [
                    replace(SAYS, height=140),
                    Node("lora", "LoraModelLoader", {"model": ("unet", 0), "lora": ("train", 1)}),
                    Node("compare", "SRPO_Compare", compare, height=670),
                ],
                spare=50,
            ),
        ],
    )


PROMPTS = Node("prompts", "SRPO_Prompts", {"clip": ("clip", 0), "text": FLUX_PROMPTS}, height=235)
PHOTOS = Node("photos", "SRPO_Photos", {"clip": ("clip", 0), "vae": ("vae", 0), "folder": "photos"}, height=200)

LOOK_PROMPT = "a portrait of a woman in a cafe by the window"
LOOK = Workflow(
    note=LOOK_NOTE,
    note_size=(320, 900),
    groups=[
        Group("1. Your FLUX, and the words", BLUE, 280, [*FLUX_FILES, replace(WORDS, height=570)]),
        Group(
            "2. One picture",
            GREEN,
            260,
            [
                Node("prompt", "PrimitiveStringMultiline", {"value": LOOK_PROMPT}, "Prompt"),
                Node("text", "CLIPTextEncode", {"clip": ("clip", 0), "text": ("prompt", 0)}),
                Node("guidance", "FluxGuidance", {"conditioning": ("text", 0)}),
                Node("empty", "EmptySD3LatentImage", {"width": 720, "height": 720}),
                Node("seed", "PrimitiveInt", {"value": 0}, "Seed"),
                Node(
                    "sample",
                    "KSampler",
                    {
                        "model": ("unet", 0),
                        "positive": ("guidance", 0),
                        "negative": ("guidance", 0),
                        "latent_image": ("empty", 0),
                        "seed": ("seed", 0),
                        "steps": 25,
                        "cfg": 1.0,
                        "sampler_name": "euler",
                        "scheduler": "simple",
                    },
                ),
                Node("decoded", "VAEDecode", {"samples": ("sample", 0), "vae": ("vae", 0)}),
            ],
        ),
        Group(
            "3. What SRPO sees of it",
            OCHRE,
            560,
            [
                REWARD,
                Node(
                    "sweep",
                    "SRPO_RecoverySweep",
                    {
                        "model": ("unet", 0),
                        "positive": ("guidance", 0),
                        "latent": ("sample", 0),
                        "vae": ("vae", 0),
                        "prompt": ("prompt", 0),
                        "seed": ("seed", 0),
                        "reward": ("reward", 0),
                        "objective": ("objective", 0),
                    },
                    height=735,
                ),
            ],
        ),
        Group(
            "4. What each word sees",
            PURPLE,
            440,
            [
                Node(
                    "table",
                    "SRPO_RewardTable",
                    {
                        "reward": ("reward", 0),
                        "images": ("decoded", 0),
                        "prompt": ("prompt", 0),
                        "words": "Natural-lighting\nDetail\nDetailed\nReal",
                        "negative": "Concept art\nPainting\nAnime\nFlat\nOil",
                    },
                    height=790,
                ),
                Node("says", "PreviewAny", {"source": ("sweep", 3)}, title="What the sweep found", height=200),
            ],
        ),
    ],
)

LAID_OUT = {
    "1 Toy FLUX in one minute": TOY,
    "2 FLUX.1-dev LoRA (online)": flux(PROMPTS_NOTE, "my-flux", PROMPTS),
    "3 FLUX.1-dev LoRA from your photos (offline)": flux(PHOTOS_NOTE, "my-photos", PHOTOS),
    "4 One SRPO step, node by node": STEP,
    "5 Look before you train": LOOK,
}
WORKFLOWS = {name: replace(each, first=100 * int(name[0]) + 1) for name, each in LAID_OUT.items()}
