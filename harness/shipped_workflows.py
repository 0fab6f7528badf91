"""The workflows that ship: what `make_workflows.py` lays out."""

from make_workflows import BLUE, GREEN, OCHRE, PURPLE, Group, Node, Workflow
from shipped_notes import FLUX_PROMPTS, PHOTOS_NOTE, PROMPTS_NOTE
from shipped_toy import SAYS, STEP, TOY

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
    ),
    Node("reward", "SRPO_LoadReward", {"file": "HPS_v2.1_compressed.pt"}),
]


def flux(note: str, run: str, dataset: Node) -> Workflow:
    """FLUX.1-dev by stock loaders, trained on a dataset, to pictures before and after by a stock LoRA loader."""
    train = {
        "trainer": ("trainer", 0),
        "dataset": (dataset.key, 0),
        "vae": ("vae", 0),
        "reward": ("reward", 0),
        "objective": ("objective", 0),
    }
    compare = {
        "model_before": ("unet", 0),
        "model_after": ("lora", 0),
        "dataset": (dataset.key, 0),
        "vae": ("vae", 0),
        "reward": ("reward", 0),
        "objective": ("objective", 0),
        "seeds": 1,
    }
    trainer = Node("trainer", "SRPO_Trainer", {"model": ("unet", 0), "run_name": run})
    return Workflow(
        note=note,
        note_size=(400, 1000),
        groups=[
            Group("1. Your files, and the run", BLUE, 300, [*FLUX_FILES, trainer]),
            Group("2. What to teach", GREEN, 360, [dataset, Node("objective", "SRPO_Objective")]),
            Group("3. Train", OCHRE, 460, [Node("train", "SRPO_Train", train, height=860), SAYS]),
            Group(
                "4. Before and after",
                PURPLE,
                400,
                [
                    Node("lora", "LoraModelLoader", {"model": ("unet", 0), "lora": ("train", 1)}),
                    Node("compare", "SRPO_Compare", compare, height=820),
                ],
            ),
        ],
    )


PROMPTS = Node("prompts", "SRPO_Prompts", {"clip": ("clip", 0), "text": FLUX_PROMPTS}, height=300)
PHOTOS = Node("photos", "SRPO_Photos", {"clip": ("clip", 0), "vae": ("vae", 0), "folder": "photos"})

WORKFLOWS = {
    "1 Toy FLUX in one minute": TOY,
    "2 FLUX.1-dev LoRA (online)": flux(PROMPTS_NOTE, "my-flux", PROMPTS),
    "3 FLUX.1-dev LoRA from your photos (offline)": flux(PHOTOS_NOTE, "my-photos", PHOTOS),
    "4 One SRPO step, node by node": STEP,
}
