"""How rollouts are sampled; without the host's modules, so that schemas may have its defaults."""

from dataclasses import dataclass

from ...srpo_core.checks import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How rollouts are sampled, by the host's names.

    guidance: the distilled kind, of FLUX.1-dev and others; None leaves it to the conditioning and the model. cfg: of
    classifier-free guidance (arXiv 2207.12598), which asks the model for a negative conditioning, too; not at 1.
    Raises ValueError for numbers that are none.
    """

    sampler_name: str = "euler"
    scheduler: str = "simple"
    steps: int = 25
    guidance: float | None = None
    cfg: float = 1.0

    def __post_init__(self):
        check_integer("steps", self.steps, 1)
        check_number("cfg", self.cfg, 0)
        if self.guidance is not None:
            check_number("guidance", self.guidance, 0)
