"""How SRPO Train uses a GPU's memory: what the user chooses, and what becomes of it."""

import logging

from comfy_api.latest import io

from ..srpo_core.algorithm.terms import Term
from ..srpo_core.run.memory import AUTO, BY_HAND, CARDS, GB, Use
from .host.progress import show_text

log = logging.getLogger(__name__)


def memory_inputs() -> list:
    return [
        io.Combo.Input(
            "memory",
            options=[AUTO, *CARDS, BY_HAND],
            default=AUTO,
            optional=True,
            tooltip="On a GPU, how to use its memory: auto takes what is free; a size, no more than a card of that "
            "size has; by hand, kept_blocks and park_inputs as they are set here.",
        ),
        io.Boolean.Input(
            "park_inputs",
            default=False,
            optional=True,
            tooltip="The inputs of the blocks wait for the backward in RAM: a little slower, but frees about 1 GB at "
            "720x720.",
        ),
        io.Int.Input(
            "sampled_at_once",
            default=0,
            min=0,
            max=1024,
            optional=True,
            tooltip="How many pictures of a batch are sampled together, if more than at_once: a GPU does so faster, "
            "above all where the model does not fit. memory chooses it on a GPU, but for by hand.",
        ),
    ]


def use_of_memory(
    node: str,
    memory: str,
    by_hand: Use,
    trainer,
    decoder,
    terms: list[Term],
    dataset,
    shape: tuple[int, int, int],
    batch: int,
) -> tuple[Use, int | None]:
    """What to use, and the bytes that the trained step needs beside the weights, None if unknown.

    by_hand: what is set; an at_once of 0 is chosen on a GPU, and else 1.
    Says in the log and on the node what does not fit. An estimate may be wrong, or not possible for a model, so it
    stops nobody.
    """
    from .host.planning import plan

    least = by_hand._replace(at_once=max(1, by_hand.at_once))
    if trainer.model.load_device.type == "cpu":
        return least, None  # all that is trained is in RAM already
    rewards = [term.reward for term in terms]
    set_or_chosen = least if memory == BY_HAND else by_hand
    try:
        use, working, text = plan(
            memory, set_or_chosen, trainer.model, decoder.vae, rewards, dataset.cond([0]), shape, batch
        )
    except Exception as error:
        log.info("How much memory this takes could not be estimated (%s: %s).", type(error).__name__, error)
        return least, None
    log.info(
        "Memory: at_once %d, kept_blocks %d, park_inputs %s, sampled_at_once %d; %.1f GB beside the weights.",
        *use,
        working / GB,
    )
    if text:
        log.warning("%s", text)
        show_text(text, node)
    return use, working
