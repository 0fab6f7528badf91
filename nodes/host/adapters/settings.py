"""What is trained on a model, as a user chooses it."""

from dataclasses import dataclass

from ....srpo_core.checks import check_integer, check_number

FULL = "full"
PRECISIONS = ("fp32", "bf16")
NO_LORA = "none"


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What is trained, and where it begins.

    kind: LoRA, LoKr, LoHa or OFT, each a key of the host's `adapter_maps`; or FULL: whole layers, also those beside
    the model's blocks, which have neither rank nor alpha. rank, alpha: as in `adapter_maps`; for LoKr the factor, for
    OFT the block size and the limit of the rotation. seed: of the random start. target: a key of TARGETS.
    start_lora: a file of the host's "loras" that a new run begins at, or NO_LORA. precision: of the trained
    parameters, one of PRECISIONS.
    Raises ValueError, a sentence, for what is no number in its range.
    """

    kind: str = "LoRA"
    rank: int = 16
    alpha: float = 16.0
    seed: int = 0
    target: str = "all"
    start_lora: str = NO_LORA
    precision: str = "fp32"

    def __post_init__(self):
        check_integer("rank", self.rank, 1, 1024)
        check_number("alpha", self.alpha, 0.01, 1024.0)
        check_integer("seed", self.seed, 0, 2**64 - 1)

    @property
    def whole_layers(self) -> bool:
        return self.kind == FULL

    def identity(self) -> dict[str, str]:
        """What a run can't change and go on. A target is named where it is not the usual one."""
        adapter = self.kind if self.target == AdapterSettings.target else f"{self.kind} ({self.target})"
        kind = {"adapter": adapter, "precision": self.precision}
        return kind if self.whole_layers else kind | {"rank": str(self.rank), "alpha": str(self.alpha)}
