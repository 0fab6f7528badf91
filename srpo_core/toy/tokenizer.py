"""The word-level tokenizer of the toy CLIP: one token per word or punctuation mark, 16 positions.

Written once by the build as `weights/tokenizer/` (tokenizer.json and tokenizer_config.json); `models.load_tokenizer`
reads it, and so does ComfyUI's SDTokenizer. Words it does not know become <unk>, which training has seen in
every position, so they do little harm.
"""

import json
import logging
from pathlib import Path

from .pictures import BACKGROUNDS, COLOURS, SHAPES

log = logging.getLogger(__name__)

SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")  # <eos> must not be id 2: transformers treats that as "the largest id"
PUNCTUATION = tuple(".,-:;!?()'\"")
ARTICLES = ("a", "an", "the", "on", "in", "of", "and", "with", "is", "at", "by")
# Words of the looks, by the look that they name. The first ones are SRPO's control words.
PHOTO_WORDS = ("Natural-lighting.", "Detail.", "Detailed.", "Real.", "Photo.", "Realistic photo.")
RENDER_WORDS = ("Concept art.", "Painting.", "Anime.", "Flat.", "Oil.", "CG Render.")
OTHER_WORDS = (
    "orange",
    "pink",
    "black",
    "white",
    "grey",
    "brown",
    "small",
    "large",
    "big",
    "one",
    "single",
    "object",
    "shape",
    "picture",
    "image",
    "photograph",
    "light",
    "bright",
    "dark",
    "style",
    "scene",
    "background",
    "realistic",
    "photo",
    "render",
    "comic",
    "cartoon",
    "drawing",
    "grain",
    "texture",
    "muted",
    "vivid",
    "colour",
    "color",
)


def vocabulary():
    """{word: id}: special tokens first, then every known word in a fixed order."""
    looks = " ".join((*PHOTO_WORDS, *RENDER_WORDS)).lower().replace(".", " ").replace("-", " ").split()
    words = (*SPECIAL, *PUNCTUATION, *ARTICLES, *SHAPES, *COLOURS, *BACKGROUNDS, *looks, *OTHER_WORDS)
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def write_tokenizer(folder: Path):
    """Writes tokenizer.json and tokenizer_config.json into `folder`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    ends = [(name, words[name]) for name in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=16,
        padding_side="right",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    log.info("saved %s, %d words", folder, len(words))
