"""References of photos: the picture that an editing model is given beside a caption, in a second folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .captions import normalised, readable
from .photo_files import Photo, walk


def with_references(photos: Sequence[Photo], folder: Path, references: Path) -> tuple[list[Photo], list[str]]:
    """Each photo of `folder` with its reference: the picture of the same name, but for its suffix, in `references`.

    What lies in a folder inside one lies in a folder of the same name inside the other. Returns also the names of
    references that belong to no photo. Raises ValueError for a photo without a reference or with several, and for
    folders that are the same or one inside the other.
    """
    _check_apart(folder, references)
    found: dict[str, list[Photo]] = {}
    for place in walk(references):
        for file, unusable in place.pictures.items():
            found.setdefault(_stem(file, references), []).append(Photo(file, "", unusable))
    paired = [photo if photo.unusable else _paired(photo, folder, found) for photo in photos]
    if missing := [photo for photo in paired if not photo.unusable and photo.reference is None]:
        name = readable(missing[0].file.relative_to(folder))
        raise ValueError(
            f"{len(missing)} of {len(photos)} photos have no reference in {references}, such as {name}: put a picture "
            "of the same name there for each, with whatever suffix, or take the photo away."
        )
    taken = {photo.reference.file for photo in paired if photo.reference}
    rest = [each for several in found.values() for each in several if each.file not in taken]
    return paired, [readable(each.file.name) for each in rest]


def _paired(photo: Photo, folder: Path, found: dict[str, list[Photo]]) -> Photo:
    """The photo with its reference, if there is one: of several the one with its own suffix, too.

    Raises ValueError for several that are as near.
    """
    candidates = found.get(_stem(photo.file, folder), [])
    candidates = [each for each in candidates if not each.unusable] or candidates
    same = [each for each in candidates if each.file.name == photo.file.name]
    candidates = same or candidates
    if len(candidates) > 1:
        names = " and ".join(readable(each.file.name) for each in candidates)
        raise ValueError(
            f"{readable(photo.file.name)} has {len(candidates)} references in {candidates[0].file.parent}, {names}: "
            f"take all but one away, or call one {readable(photo.file.name)}."
        )
    return replace(photo, reference=candidates[0]) if candidates else photo


def _stem(file: Path, folder: Path) -> str:
    """By what a photo and its reference know each other."""
    return normalised(file.relative_to(folder).with_suffix("").as_posix())


def _check_apart(folder: Path, references: Path):
    """Raises ValueError where pictures would be both photos and references."""
    ours = folder.resolve()
    theirs = references.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise ValueError(
            f"The references are in {references}, and the photos in {folder}: put them into two folders, neither "
            "inside the other."
        )
