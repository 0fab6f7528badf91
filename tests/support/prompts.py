"""API prompts of the toy workflows, small enough for tests."""

from srpo_core.run.draws import Batching, draw_seed

OBJECTIVE = {
    "positive": "Natural-lighting\nDetail",
    "negative": "Painting\nFlat",
    "reward_low_noise": 0.1,
    "reward_high_noise": 0.25,
    "penalty_low_noise": 0.3,
    "penalty_high_noise": 0.01,
    "threshold": 0.7,
    "branches": "both",
}
ADAPTER = {"adapter": "LoRA", "rank": 4, "alpha": 4.0, "target": "all", "seed": 0}
OPTIMIZER = {
    "optimizer": "AdamW",
    "weight_decay": 1e-4,
    "max_gradient_norm": 0.1,
    "warmup": 0,
    "cosine_to": 0,
    "ema": 0.0,
    "save_every": 1,
    "snapshot_every": 0,
    "keep_snapshots": 3,
    "precision": "fp32",
}
CAPTION = "a red circle on grass"
STEPS = 4  # of the sampler
SAMPLER = {"sampler_name": "euler", "scheduler": "simple", "steps": STEPS}
ROLLOUTS = {**SAMPLER, "guidance": 3.5, "cfg": 1.0, "width": 0, "height": 0, "pairs": 1, "reuse": 1}
LEVELS = {
    "sigma_max": 0.96,
    "sigma_min": 0.75,
    "measured_in": "noise share",
    "shared_noise": False,
    "trained_at": "any level",
}
WATCH = {
    "at_limit": "warn",
    "saturation_limit": 0.0,
    "words_gap_limit": 0.0,
    "watching_limit": 0.0,
    "velocity_limit": 0.0,
    "norm_guard": 0.0,
    "distance_guard": 0.0,
}
PREVIEWS = {**SAMPLER, "every": 1000, "count": 1, "seeds": "", "width": 0, "height": 0}
BY_HAND = {"at_once": 1, "sampled_at_once": 1, "kept_blocks": 0, "offload": False, "compile_blocks": False}
TRAIN = {"width": 64, "height": 64, "batch": 1, "seed": 0, "guidance": 3.5, "cfg": 1.0}
RUN = Batching(shape=(16, 8, 8))  # of a run with the seed 0


def noise_seed(number: int) -> int:
    """What the noise of a run's sample `number` (from 0) is called."""
    return draw_seed(RUN, number)


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def dynamic(name: str, choice: str, **inputs) -> dict:
    """The inputs of a dynamic combo as the host takes them."""
    return {name: choice, **{f"{name}.{key}": value for key, value in inputs.items()}}


def chosen(settings: dict, options: dict) -> dict:
    """The settings with those of the options that are among them, which are taken out of the options."""
    return settings | {name: options.pop(name) for name in settings if name in options}


def base(run: str, **options) -> dict:
    """Toy models, objective and trainer. options: inputs of SRPO Trainer, of its combos and of SRPO Optimizer."""
    optimizer = node("SRPO_Optimizer", **chosen(OPTIMIZER, options))
    adapter = chosen(ADAPTER, options)
    kind = adapter.pop("adapter")
    if kind in ("LoKr", "OFT"):
        adapter["factor" if kind == "LoKr" else "block_size"] = adapter.pop("rank")
    if kind == "full":
        adapter = {"target": adapter["target"]}
    start = dynamic("start", "new, or as it is")
    if "start_from" in options:
        start = dynamic("start", "another run", start_from=options.pop("start_from"))
    if lora := options.pop("start_lora", None):
        start = dynamic("start", "a LoRA file", start_lora=lora)
    inputs = {"model": ["toy", 0], "run_name": run, "learning_rate": 1e-3, "optimizer": ["optimizer", 0], **start}
    return {
        "toy": node("SRPO_ToyModels"),
        "objective": node("SRPO_Objective", **OBJECTIVE),
        "optimizer": optimizer,
        "trainer": node("SRPO_Trainer", **{**inputs, **dynamic("adapter", kind, **adapter), **options}),
    }


def train(run: str, updates: int, trainer: dict | None = None, text: str = CAPTION, **options) -> dict:
    """SRPO_Train with `updates` updates of one prompt each.

    options: its inputs and those of the nodes at its sockets; `previews_every`, `previews_count`, ... are those of
    SRPO Previews, `rollout_guidance` and `rollout_width` those of SRPO Rollouts. Steps are of both.
    """
    steps = {"steps": options.pop("steps", STEPS)}
    memory = dynamic("memory", options.pop("memory", "auto"))
    if BY_HAND.keys() & options.keys():
        memory = dynamic("memory", "by hand", **chosen(BY_HAND, options))
    rollouts = {name.removeprefix("rollout_"): options.pop(name) for name in list(options) if name[:8] == "rollout_"}
    previews = {name.removeprefix("previews_"): options.pop(name) for name in list(options) if name[:9] == "previews_"}
    prompt = {
        **base(run, **(trainer or {})),
        "prompts": node("SRPO_Prompts", clip=["toy", 1], text=text, file="none"),
        "rollouts": node("SRPO_Rollouts", **{**chosen(ROLLOUTS, options), **steps, **rollouts}),
        "levels": node("SRPO_NoiseLevels", **chosen(LEVELS, options)),
        "watch": node("SRPO_Watch", **chosen(WATCH, options)),
        "previews": node("SRPO_Previews", **{**PREVIEWS, **steps, **previews}),
    }
    sockets = {name: [name, 0] for name in ("trainer", "objective", "rollouts", "levels", "watch", "previews")}
    models = {"vae": ["toy", 2], "reward": ["toy", 3], "dataset": ["prompts", 0]}
    if "photos" in options:
        share = options.pop("photo_share", 0.5)
        prompt["mix"] = node("SRPO_Mix", prompts=["prompts", 0], photos=options.pop("photos"), photo_share=share)
        models["dataset"] = ["mix", 0]
    prompt["train"] = node("SRPO_Train", **{**sockets, **models, **memory, "updates": updates, **TRAIN, **options})
    return prompt


def sample(model: list, seed: int, steps: int = STEPS) -> dict:
    """The core's nodes from noise to a latent ("sample")."""
    return {
        "text": node("CLIPTextEncode", clip=["toy", 1], text=CAPTION),
        "positive": node("FluxGuidance", conditioning=["text", 0], guidance=3.5),
        "noise": node("RandomNoise", noise_seed=seed),
        "guider": node("BasicGuider", model=model, conditioning=["positive", 0]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
    }


def one_step(run: str, seed: int, trainer: dict | None = None, **inject) -> dict:
    """One update, node by node."""
    model = ["trainer", 1]
    levels = node("SRPO_NoiseLevels", **chosen(LEVELS, inject))
    position = {"position": 0, **inject}
    reward = {"reward": ["toy", 3], "vae": ["toy", 2], "recovered": ["recover", 0], "objective": ["objective", 0]}
    return {
        **base(run, **(trainer or {})),
        **sample(model, seed),
        "levels": levels,
        "inject": node(
            "SRPO_NoisePriorInject",
            model=model,
            latent=["sample", 0],
            noise=["noise", 0],
            levels=["levels", 0],
            **position,
        ),
        "recover": node("SRPO_OneStepRecover", model=model, positive=["positive", 0], noised=["inject", 0], cfg=1.0),
        "reward": node("SRPO_Reward", **reward, prompt=CAPTION),
        "step": node("SRPO_TrainStep", trainer=["trainer", 0], **{"rewards.reward0": ["reward", 0]}),
    }


def save_latent(source: list, name: str) -> dict:
    return {f"save {name}": node("SaveLatent", samples=source, filename_prefix=name)}
