"""From texts to the token ids that a reward's text tower was trained on."""

import logging
import re
import string
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..files import check_file

log = logging.getLogger(__name__)

CLIP_VOCABULARY = 49408
SIGLIP2_VOCABULARY = 256000  # Gemma's; no SigLIP of the first generation has it
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer:
    """Texts to ids (N, context): `start`, the text, `end`, then `pad`. A longer text is cut; the first one is logged.

    encode: the ids of one text, without special tokens. start: None for a model that has no start token.
    """

    def __init__(self, encode: Callable[[str], list[int]], context: int, start: int | None, end: int, pad: int):
        self.encode = encode
        self.context = context
        self.end = end
        self.pad = pad
        self.start = [] if start is None else [start]
        self._warned = False

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.tensor([self._row(text) for text in texts])

    def _row(self, text: str) -> list[int]:
        ids = self.encode(text)
        room = self.context - len(self.start) - 1
        if len(ids) > room and not self._warned:
            self._warned = True
            log.warning(
                "The reward reads %d tokens, and %r has %d: what comes last is not read (of this text and of any "
                "other that is too long). Put what matters first.", room, text, len(ids)
            )  # fmt: skip
        row = [*self.start, *ids[:room], self.end]
        return row + [self.pad] * (self.context - len(row))


@cache
def clip_words():
    """CLIP's own vocabulary, which takes a second to read."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def clip_tokenizer(context: int, pad: int | None = None) -> Tokenizer:
    """CLIP's. pad: None for the end token, as transformers pads; CLIP itself reads nothing after it."""
    tokenizer = clip_words()
    end = tokenizer.eot_token_id
    return Tokenizer(tokenizer.encode, context, tokenizer.sot_token_id, end, pad=end if pad is None else pad)


def siglip_tokenizer(weights: Path, vocabulary: int, context: int) -> Tokenizer:
    """SigLIP's or SigLIP2's, from the model's own file beside the weights. vocabulary: rows of its embedding.

    Raises ValueError when there is no such file, or one of another model.
    """
    second = vocabulary == SIGLIP2_VOCABULARY
    file = siglip_tokenizer_file(weights, second)
    check_file(file)
    try:
        encode, size, find = tokenizer_json(file) if file.suffix == ".json" else sentencepiece_model(file)
    except Exception as error:  # both libraries raise bare ones
        raise ValueError(
            f"{file.name} can't be read as a tokenizer ({error}). {where_from(weights, second)}"
        ) from error
    end = find("<eos>" if second else "</s>")
    pad = find("<pad>" if second else "</s>")
    if end is None or pad is None or size > vocabulary:
        raise ValueError(
            f"{file.name} is the tokenizer of another model than {weights.name}: it has {size} tokens, and the model "
            f"{vocabulary}. {where_from(weights, second)}"
        )
    clean = str.lower if second else canonical
    return Tokenizer(lambda text: encode(clean(text)), context, None, end, pad=pad)


def siglip_tokenizer_file(weights: Path, second: bool) -> Path:
    names = ["tokenizer.json"] if second else ["spiece.model", "tokenizer.json"]
    own = [weights.with_name(f"{weights.stem}.{name}") for name in names]
    found = next(filter(Path.exists, own + [weights.with_name(name) for name in names]), None)
    if found is None:
        raise ValueError(f"The tokenizer of {weights.name} is missing. {where_from(weights, second)}")
    return found


def where_from(weights: Path, second: bool) -> str:
    name = "tokenizer.json" if second else "spiece.model"
    repo = "siglip2" if second else "siglip"
    return (
        f"Take {name} from the model's page, such as huggingface.co/google/{repo}-so400m-patch14-384, and put it "
        f"beside the weights as '{weights.stem}.{name}'."
    )


def tokenizer_json(file: Path):
    """From a file of the tokenizers library: text to ids, how many tokens there are, and the id of one by name."""
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    return lambda text: fast.encode(text, add_special_tokens=False).ids, fast.get_vocab_size(), fast.token_to_id


def sentencepiece_model(file: Path):
    """The same as tokenizer_json, from a file of the sentencepiece library."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(file))

    def find(token: str) -> int | None:
        index = pieces.piece_to_id(token)
        return index if pieces.id_to_piece(index) == token else None

    return pieces.encode, pieces.get_piece_size(), find


def canonical(text: str) -> str:
    """The text as SigLIP's training texts are: lower case, no punctuation, single spaces."""
    return re.sub(r"\s+", " ", text.lower().translate(NO_PUNCTUATION)).strip()
