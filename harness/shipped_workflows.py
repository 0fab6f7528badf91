"""The workflows that ship: what `make_workflows.py` lays out."""

from dataclasses import dataclass, replace

from make_workflows import BLUE, BROWN, GREEN, OCHRE, PURPLE, Group, Node, Workflow
from shipped_notes import FLUX_PROMPTS, LOOK_NOTE, PHOTOS_NOTE, PROMPTS_NOTE, Z_IMAGE_NOTE
from shipped_toy import GUIDANCE, SAYS, STEP, TOY, TRAIN_HEIGHT

HUB = "https://huggingface.co"
# Without an address: the front end offers it only for what a menu lacks, and ours lists what is published. Where the
# file is missing, Run says on the node which one, its size, from where, into which folder, or what to tick.
REWARD = Node("reward", "SRPO_LoadReward", {"file": "HPS_v2.1_compressed.pt"})
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
Z_IMAGE = f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files"  # as ComfyUI's own template has it
Z_IMAGE_FILES = [
    Node(
        "unet",
        "UNETLoader",
        {"unet_name": "z_image_turbo_bf16.safetensors"},
        files=(("diffusion_models", f"{Z_IMAGE}/diffusion_models/z_image_turbo_bf16.safetensors"),),
    ),
    Node(
        "clip",
        "CLIPLoader",
        {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"},
        files=(("text_encoders", f"{Z_IMAGE}/text_encoders/qwen_3_4b.safetensors"),),
    ),
    Node(
        "vae",
        "VAELoader",
        {"vae_name": "ae.safetensors"},
        files=(("vae", f"{Z_IMAGE}/vae/ae.safetensors"),),
        height=90,
    ),
]
TURBO = {"sampler_name": "res_multistep", "scheduler": "simple", "steps": 8}  # likewise
AT_STEPS = {"trained_at": "rollout steps"}  # four of these 8 begin in the window: 0.955, 0.900, 0.833 and 0.750
WORDS = Node("objective", "SRPO_Objective", height=440)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model by stock loaders, and how it is sampled.

    sampled: inputs of SRPO Train and SRPO Compare that say so. options: nodes at SRPO Train's sockets of their names.
    """

    files: list[Node]
    sampled: dict
    options: tuple[Node, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Of the note and of the groups' nodes; the frames are wider."""

    note: int
    files: int
    words: int
    options: int = 0
    train: int
    pictures: int


WIDE = Widths(note=320, files=280, words=340, train=520, pictures=400)
NARROW = Widths(note=294, files=250, words=280, options=230, train=450, pictures=300)  # one more in as much room

FLUX = Base(files=FLUX_FILES, sampled={"guidance": GUIDANCE})
Z_IMAGE_TURBO = Base(
    files=Z_IMAGE_FILES,
    sampled={"previews": ("previews", 0)},
    options=(
        Node("rollouts", "SRPO_Rollouts", TURBO),
        Node("levels", "SRPO_NoiseLevels", AT_STEPS),
        Node("previews", "SRPO_Previews", TURBO, height=290),
    ),
)


def training(note: str, run: str, base: Base, dataset: Node) -> Workflow:
    """A base, trained on a dataset, to pictures before and after by a stock LoRA loader."""
    train = {
        "trainer": ("trainer", 0),
        "dataset": (dataset.key, 0),
        "vae": ("vae", 0),
        "reward": ("reward", 0),
        "objective": ("objective", 0),
        **base.sampled,
        **{node.key: (node.key, 0) for node in base.options},
    }
    compare = {
        "model_before": ("unet", 0),
        "model_after": ("lora", 0),
        "dataset": (dataset.key, 0),
        "vae": ("vae", 0),
        "reward": ("reward", 0),
        "objective": ("objective", 0),
        **base.sampled,
        "prompts": 2,  # from two seeds each: as many pictures as of four, and their diversity
        "seeds": 2,
    }
    trainer = Node("trainer", "SRPO_Trainer", {"model": ("unet", 0), "run_name": run})
    widths = NARROW if base.options else WIDE
    return Workflow(
        note=note,
        note_size=(widths.note, 1066),
        groups=[
            Group("1. Your files, and the run", BLUE, widths.files, [*base.files, trainer]),
            Group("2. What to teach", GREEN, widths.words, [REWARD, dataset, WORDS]),
            *([Group("In few steps", BROWN, widths.options, list(base.options))] if base.options else []),
            Group("3. Train", OCHRE, widths.train, [Node("train", "SRPO_Train", train, height=TRAIN_HEIGHT)]),
            Group(
                "4. Before and after",
                PURPLE,
                widths.pictures,
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
PHOTOS = Node("photos", "SRPO_Photos", {"clip": ("clip", 0), "vae": ("vae", 0), "folder": "photos"}, height=254)

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
    "2 FLUX.1-dev LoRA (online)": training(PROMPTS_NOTE, "my-flux", FLUX, PROMPTS),
    "3 FLUX.1-dev LoRA from your photos (offline)": training(PHOTOS_NOTE, "my-photos", FLUX, PHOTOS),
    "4 One SRPO step, node by node": STEP,
    "5 Look before you train": LOOK,
    "7 Z-Image-Turbo LoRA (online)": training(Z_IMAGE_NOTE, "my-z-image", Z_IMAGE_TURBO, PROMPTS),
}
WORKFLOWS = {name: replace(each, first=100 * int(name[0]) + 1) for name, each in LAID_OUT.items()}
