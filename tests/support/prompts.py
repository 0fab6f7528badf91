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
TRAINER = {
    "model": ["toy", 0],
    "adapter": "LoRA",
    "rank": 4,
    "alpha": 4.0,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "max_gradient_norm": 0.1,
    "seed": 0,
    "save_every": 1,
}
CAPTION = "a red circle on grass"
STEPS = 4  # of the sampler
RUN = Batching(shape=(16, 8, 8))  # of a run with the seed 0


def noise_seed(number: int) -> int:
    """What the noise of a run's sample `number` (from 0) is called."""
    return draw_seed(RUN, number)


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def base(run: str, **trainer) -> dict:
    """Toy models, objective and trainer."""
    return {
        "toy": node("SRPO_ToyModels"),
        "objective": node("SRPO_Objective", **OBJECTIVE),
        "trainer": node("SRPO_Trainer", **{**TRAINER, "run_name": run, **trainer}),
    }


def train(run: str, updates: int, trainer: dict | None = None, text: str = CAPTION, **options) -> dict:
    """SRPO_Train with `updates` updates of one prompt each."""
    settings = {
        "updates": updates,
        "width": 64,
        "height": 64,
        "batch": 1,
        "at_once": 0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "steps": STEPS,
        "rollout_guidance": 3.5,
        "guidance": 3.5,
        "sigma_max": 0.96,
        "sigma_min": 0.75,
        "seed": 0,
        "preview_every": 1000,
        "previews": 1,
    }
    inputs = {"trainer": ["trainer", 0], "dataset": ["prompts", 0], "vae": ["toy", 2], "reward": ["toy", 3]}
    return {
        **base(run, **(trainer or {})),
        "prompts": node("SRPO_Prompts", clip=["toy", 1], text=text, file="none"),
        "train": node("SRPO_Train", **inputs, objective=["objective", 0], **{**settings, **options}),
    }


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
    window = {"position": 0, "sigma_max": 0.96, "sigma_min": 0.75, **inject}
    reward = {"reward": ["toy", 3], "vae": ["toy", 2], "recovered": ["recover", 0], "objective": ["objective", 0]}
    return {
        **base(run, **(trainer or {})),
        **sample(model, seed),
        "inject": node("SRPO_NoisePriorInject", model=model, latent=["sample", 0], noise=["noise", 0], **window),
        "recover": node("SRPO_OneStepRecover", model=model, positive=["positive", 0], noised=["inject", 0]),
        "reward": node("SRPO_Reward", **reward, prompt=CAPTION),
        "step": node("SRPO_TrainStep", trainer=["trainer", 0], **{"rewards.reward0": ["reward", 0]}),
    }


def save_latent(source: list, name: str) -> dict:
    return {f"save {name}": node("SaveLatent", samples=source, filename_prefix=name)}
