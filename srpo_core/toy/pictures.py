"""The pictures of the toy world: simple captioned scenes in two looks.

A *photo* has texture, grain, natural light, a soft shadow and muted colour.
A *render* is smooth, glossy and saturated.
Pictures are float32 (3, 64, 64) in [0, 1]. The judge learns from other drawings: see `other_pictures.py`.
"""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
BACKGROUNDS = ("grass", "sand", "snow", "wood")
Colours = dict[str, tuple[float, float, float]]  # (red, green, blue) in [0, 1] by name
LOOKS = ("photo", "render")
BLACK = 1e-3  # what is darker has no saturation to speak of

# At least 45 degrees of hue apart, so that a warm light does not turn one colour into the next.
RENDER_COLOURS: Colours = {
    "red": (0.95, 0.08, 0.10),
    "yellow": (1.00, 0.88, 0.05),
    "green": (0.05, 0.70, 0.15),
    "cyan": (0.05, 0.85, 0.90),
    "blue": (0.10, 0.20, 0.95),
    "purple": (0.65, 0.10, 0.85),
}
PHOTO_COLOURS: Colours = {
    "red": (0.66, 0.24, 0.23),
    "yellow": (0.80, 0.70, 0.30),
    "green": (0.22, 0.48, 0.27),
    "cyan": (0.32, 0.66, 0.69),
    "blue": (0.24, 0.31, 0.62),
    "purple": (0.50, 0.28, 0.58),
}
RENDER_GROUNDS: Colours = {
    "grass": (0.45, 0.90, 0.25),
    "sand": (0.98, 0.78, 0.48),
    "snow": (0.90, 0.95, 1.00),
    "wood": (0.55, 0.27, 0.07),
}
PHOTO_GROUNDS: Colours = {
    "grass": (0.42, 0.50, 0.28),
    "sand": (0.74, 0.65, 0.51),
    "snow": (0.84, 0.86, 0.88),
    "wood": (0.43, 0.31, 0.22),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `caption` says it in words, `parse` reads it back."""

    shape: str
    colour: str
    background: str


def all_scenes():
    """The 96 scenes, in a fixed order."""
    return [Scene(*words) for words in itertools.product(SHAPES, COLOURS, BACKGROUNDS)]


def random_scene(rng: np.random.Generator):
    """One scene drawn uniformly with the numpy generator `rng`."""
    return Scene(*(str(rng.choice(words)) for words in (SHAPES, COLOURS, BACKGROUNDS)))


def caption(scene: Scene):
    """`Scene("circle", "red", "grass")` -> "a red circle on grass"."""
    return f"a {scene.colour} {scene.shape} on {scene.background}"


def parse(text: str):
    """The scene that a caption names, whatever stands before or around it.

    Raises ValueError if a shape, a colour or a background is missing from `text`.
    """
    words = re.findall(r"[a-z]+", text.lower())
    found = []
    for kind, known in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS)):
        hits = [word for word in words if word in known]
        if not hits:
            raise ValueError(f"no {kind} in the caption {text!r}; it needs one of: {', '.join(known)}")
        found.append(hits[0])
    return Scene(*found)


@lru_cache
def grid():
    """Pixel centres: x and y, each (64, 64) in [-1, 1], y pointing down."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    return np.meshgrid(axis, axis)


@lru_cache
def _spread(cells: int):
    """(64, cells) matrix that interpolates `cells` values smoothly over 64 pixels, keeping unit variance."""
    centres = (np.arange(cells) + 0.5) * SIZE / cells
    gap = (np.arange(SIZE)[:, None] + 0.5 - centres) * cells / SIZE
    weights = np.exp(-2.0 * gap**2)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


def smooth_noise(rng: np.random.Generator, rows: int, columns: int):
    """(64, 64) noise of unit variance that changes about `rows` times down and `columns` times across."""
    cells = rng.standard_normal((rows, columns), dtype=np.float32)
    return _spread(rows) @ cells @ _spread(columns).T


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float):
    """Signed distance to the outline of `shape` around the origin, negative inside; units of `grid()`."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.80 * radius
    if shape == "triangle":
        y = y - 0.15 * radius
        return np.maximum(y, 0.866 * np.abs(x) - 0.5 * y) - 0.58 * radius
    if shape == "star":
        return _star_distance(x, y, 1.12 * radius)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _star_distance(x: np.ndarray, y: np.ndarray, radius: float, points: int = 5, waist: float = 0.45):
    """Fold the plane into half a point of the star, then measure to the one edge that is left."""
    half = np.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    length = np.hypot(x, y)
    across = length * np.sin(angle)
    along = length * np.cos(angle) - radius
    edge_x = waist * radius * np.sin(half)
    edge_y = waist * radius * np.cos(half) - radius
    return (across * -edge_y + along * edge_x) / np.hypot(edge_x, edge_y)


@dataclass
class Pose:
    """Where the object is: centre, radius, turn, and the direction from which the light comes."""

    x: float
    y: float
    radius: float
    turn: float
    light_x: float
    light_y: float

    def distance(self, shape: str, dx: float = 0.0, dy: float = 0.0):
        """Signed distance (64, 64) to the object shifted by (dx, dy)."""
        x, y = grid()
        x = x - self.x - dx
        y = y - self.y - dy
        cos = np.cos(self.turn)
        sin = np.sin(self.turn)
        return distance(shape, cos * x + sin * y, cos * y - sin * x, self.radius)

    def across_light(self):
        """(64, 64): about +1 on the lit side of the object, -1 on the far side."""
        x, y = grid()
        return ((x - self.x) * self.light_x + (y - self.y) * self.light_y) / self.radius


def random_pose(
    rng: np.random.Generator, radius: tuple[float, float] = (0.46, 0.62), shift: float = 0.16, turn: float = 0.2
):
    """A pose with the light from above, left or right."""
    side = rng.uniform(0.3, 0.8) * rng.choice((-1, 1))
    return Pose(
        rng.uniform(-shift, shift),
        rng.uniform(-shift, shift),
        radius=rng.uniform(*radius),
        turn=rng.uniform(-turn, turn),
        light_x=side,
        light_y=-np.sqrt(1 - side**2),
    )


def cover(dist: np.ndarray, softness: float = 1.0):
    """Signed distance -> coverage in [0, 1]; the edge is `softness` pixels wide."""
    return np.clip(0.5 - dist * (SIZE / 2) / softness, 0, 1)


def blend(below: np.ndarray, above: np.ndarray, mask: np.ndarray):
    """Put `above` over `below`, both (64, 64, 3), where `mask` (64, 64) is 1."""
    return below + (above - below) * mask[..., None]


def _photo_ground(rng: np.random.Generator, name: str):
    """Textured ground in natural colours, (64, 64, 3)."""
    x, y = grid()
    colour = np.array(PHOTO_GROUNDS[name], np.float32)
    if name == "grass":
        texture = 0.085 * smooth_noise(rng, 9, 24) + 0.05 * smooth_noise(rng, 16, 24)
    elif name == "sand":
        waves = np.sin(rng.uniform(13, 18) * (y + 0.06 * smooth_noise(rng, 4, 4)) + rng.uniform(0, 6.28))
        texture = 0.045 * waves + 0.04 * smooth_noise(rng, 20, 20)
    elif name == "snow":
        texture = 0.05 * smooth_noise(rng, 5, 5) + 0.03 * smooth_noise(rng, 20, 20)
    else:
        texture = 0.065 * smooth_noise(rng, 22, 4) + 0.025 * smooth_noise(rng, 20, 16)
        plank = np.abs((y * 2 + rng.uniform(0, 1)) % 1 - 0.5)
        texture = texture - 0.16 * np.clip(1 - plank / 0.06, 0, 1)
    return colour * (1 + texture[..., None] / colour.mean())


def draw_photo(scene: Scene, rng: np.random.Generator):
    """The scene as a photograph, (64, 64, 3), not yet clipped."""
    x, y = grid()
    pose = random_pose(rng)
    picture = _photo_ground(rng, scene.background)
    shadow = cover(pose.distance(scene.shape, -0.22 * pose.light_x, -0.16 * pose.light_y), softness=12)
    picture = picture * (1 - 0.5 * shadow[..., None])
    colour = np.array(PHOTO_COLOURS[scene.colour], np.float32) * rng.uniform(0.92, 1.08)
    shade = 1 + 0.24 * pose.across_light() + 0.07 * smooth_noise(rng, 12, 12) + 0.05 * smooth_noise(rng, 22, 22)
    picture = blend(picture, colour * shade[..., None], cover(pose.distance(scene.shape), softness=1.6))
    light = 1 + rng.uniform(0.05, 0.14) * (x * pose.light_x + y * pose.light_y) - 0.10 * (x * x + y * y)
    cast = 1 + rng.uniform(-0.05, 0.05) * np.array((1.0, 0.1, -1.0), np.float32)
    picture = picture * (light * rng.uniform(0.9, 1.12))[..., None] * cast
    grain = 0.018 * smooth_noise(rng, 32, 32) + 0.012 * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    return picture + grain[..., None]


def draw_render(scene: Scene, rng: np.random.Generator):
    """The scene as a glossy computer picture, (64, 64, 3), not yet clipped."""
    x, y = grid()
    pose = random_pose(rng)
    ground = np.array(RENDER_GROUNDS[scene.background], np.float32)
    picture = ground * (1 - rng.uniform(0.04, 0.16) * y[..., None])
    dist = pose.distance(scene.shape)
    contact = cover(pose.distance(scene.shape, -0.06 * pose.light_x, -0.08 * pose.light_y), softness=3)
    picture = picture * (1 - 0.3 * contact[..., None])
    colour = np.array(RENDER_COLOURS[scene.colour], np.float32)
    depth = np.clip(-dist / (0.35 * pose.radius), 0, 1)
    body = colour * (0.72 + 0.28 * depth + 0.08 * pose.across_light())[..., None]
    spot_x = x - pose.x - 0.28 * pose.radius * pose.light_x
    spot_y = y - pose.y + 0.22 * pose.radius
    spot = np.exp(-((spot_x / 0.16) ** 2 + (spot_y / 0.10) ** 2))
    body = blend(body, np.ones(3, np.float32), 0.85 * spot)
    return blend(picture, body, cover(dist))


def to_tensor(picture: np.ndarray):
    """(64, 64, 3) array -> clipped float32 tensor (3, 64, 64) in [0, 1]."""
    clipped = np.clip(picture, 0, 1).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(clipped.transpose(2, 0, 1)))


def draw(scene: Scene, look: str, rng: np.random.Generator):
    """Draw `scene` in `look` ("photo" or "render") with the numpy generator `rng`: (3, 64, 64) in [0, 1]."""
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}; known: {', '.join(LOOKS)}")
    return to_tensor(draw_photo(scene, rng) if look == "photo" else draw_render(scene, rng))
