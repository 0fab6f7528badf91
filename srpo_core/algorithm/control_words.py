"""Control words that are known to steer, or that follow those that are.

"realism" is the published list for HPS. Bright, dark, comic and concept art are looks that the paper (arXiv
2509.06942, section 5) steers towards; their words here, and "flat", are ours.
"""

PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # positive, negative
    "realism": (
        ("Natural-lighting", "Detail", "Detailed", "Real"),
        ("Concept art", "Painting", "Anime", "Flat", "Oil"),
    ),
    "dark": (
        ("Dark", "Low-key lighting", "Night", "Shadows"),
        ("Bright", "Overexposed", "High-key lighting", "Daylight"),
    ),
    "bright": (
        ("Bright", "High-key lighting", "Daylight", "Sunny"),
        ("Dark", "Low-key lighting", "Night", "Gloomy"),
    ),
    "comic": (
        ("Comic", "Comic book", "Ink lines", "Cel shading"),
        ("Photo", "Realistic", "Natural-lighting", "Film grain"),
    ),
    "concept art": (
        ("Concept art", "Digital painting", "Matte painting", "Illustration"),
        ("Photo", "Realistic", "Snapshot", "Film grain"),
    ),
    "flat": (
        ("Flat", "Flat colors", "Vector art", "Minimalist"),
        ("Detailed", "Realistic", "Shading", "3D render"),
    ),
}


def with_word(word: str, prompt: str) -> str:
    """What the reward reads: `"<word>. <prompt>"`, or the word alone where the prompt is blank."""
    prompt = prompt.strip()
    return f"{word}. {prompt}" if prompt else word
