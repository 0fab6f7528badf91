"""Seeds of independent random streams: each draw of a run has one of its own, hashed from what it is of."""

import hashlib
from typing import Any

NOISES = 2**32  # torch's CPU generator, and so ComfyUI's RandomNoise, tells no more seeds apart: it reads 32 bits
RESERVED = 2**16  # the last of them are never derived, so that previews can begin from noise that training never draws
FIRST_RESERVED = NOISES - RESERVED


def derived_seed(*of: Any) -> int:
    """A seed in 0..FIRST_RESERVED - 1 by a hash of what it is of, such as ("draw", 0, 17).

    Neighbouring numbers give seeds that have nothing in common. It is small enough to be typed as RandomNoise's
    noise_seed; what is larger than 2**53 a browser rounds.
    """
    key = " ".join(map(str, of)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % FIRST_RESERVED
