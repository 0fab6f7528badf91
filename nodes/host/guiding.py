"""What the host's guider is given: conditionings with guidance, and the negative one beside the positive."""

import node_helpers

from ...srpo_core.data.photo_latents import REFERENCES


def with_guidance(cond: list, guidance: float | None) -> list:
    return cond if guidance is None else node_helpers.conditioning_set_values(cond, {"guidance": guidance})


def with_references_of(positive: list, negative: list) -> list:
    """The negative conditioning with the positive one's references where it has none: edits are sampled so."""
    found = [extra[REFERENCES] for _, extra in positive if REFERENCES in extra]
    return [[context, {REFERENCES: found[0]} | extra] for context, extra in negative] if found else negative
