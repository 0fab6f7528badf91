"""Photos with references: paired by their names, encoded beside them, and given with their captions."""

from pathlib import Path

import pytest
import torch
from photo_pictures import SIZES, picture

from srpo_core.data.photo_files import scan_folder
from srpo_core.data.photo_latents import REFERENCES, Latents, Photos, Store
from srpo_core.data.photo_sizes import measure_all
from srpo_core.data.references import with_references
from srpo_core.run.draws import Batching, Draw, of_one_shape


class Captions:
    """Conditionings that are the numbers of their photos."""

    def prepare(self, indices):
        pass

    def cond(self, indices):
        return [[torch.tensor(indices), {"pooled_output": None}]]

    def cond_shape(self, index):
        return 6


def paired(tmp_path: Path):
    photos, unused = with_references(scan_folder(tmp_path / "after").photos, tmp_path / "after", tmp_path / "before")
    return photos, unused


def dataset(tmp_path: Path) -> tuple[Photos, list[str]]:
    """Latents are the means of each 8x8 pixels."""
    store = Store(tmp_path / "store", lambda image: torch.nn.functional.avg_pool2d(image, 8), "a VAE")
    measured, left_out = measure_all(paired(tmp_path)[0], SIZES)
    return Photos(Latents(measured, store), Captions()), left_out


@pytest.fixture
def pairs(tmp_path):
    """Three photos of one shape; the third one's reference is wide."""
    for i, name in enumerate(("a.png", "b.jpg", "deep/c.webp")):
        picture(tmp_path / "after" / name, color=(10 * i, 0, 0))
    picture(tmp_path / "before/a.jpg", color=(100, 0, 0), quality=100)
    picture(tmp_path / "before/B.PNG", color=(150, 0, 0))
    picture(tmp_path / "before/deep/c.png", 192, 96, color=(200, 0, 0))
    return tmp_path


def test_a_reference_has_its_photos_name_in_the_other_folder(pairs):
    photos, unused = paired(pairs)
    found = {photo.file.name: photo.reference.file.relative_to(pairs / "before").as_posix() for photo in photos}
    assert found == {"a.png": "a.jpg", "b.jpg": "B.PNG", "c.webp": "deep/c.png"} and unused == []
    picture(pairs / "before/c.png")  # of another folder
    assert paired(pairs)[1] == ["c.png"]


def test_sentences_for_folders_that_do_not_match(pairs):
    picture(pairs / "after/lonely.png")
    with pytest.raises(ValueError, match=r"1 of 4 photos have no reference in .*before, such as lonely\.png"):
        paired(pairs)
    picture(pairs / "before/lonely.jpg")
    picture(pairs / "before/lonely.webp")
    with pytest.raises(
        ValueError, match=r"lonely\.png has 2 references in .*, lonely\.jpg and lonely\.webp: .* lonely\.png"
    ):
        paired(pairs)
    picture(pairs / "before/lonely.png")  # as is advised
    photos, unused = paired(pairs)
    assert {p.file.name: p.reference.file.name for p in photos}["lonely.png"] == "lonely.png"
    assert sorted(unused) == ["lonely.jpg", "lonely.webp"]
    for inside in ("after", "after/deep", "."):
        with pytest.raises(ValueError, match="two folders, neither inside the other"):
            with_references([], pairs / "after", pairs / inside)


def test_what_can_not_be_used_decides_nothing(pairs):
    (pairs / "after/gone.png").symlink_to(pairs / "nowhere.png")
    (pairs / "before/a.webp").symlink_to(pairs / "nowhere.webp")
    photos, _ = paired(pairs)
    found = {photo.file.name: photo.reference.file.name for photo in photos if photo.reference}
    assert found == {"a.png": "a.jpg", "b.jpg": "B.PNG", "c.webp": "c.png"}


def test_conditionings_hold_the_references_of_their_own_photos(pairs):
    data, left_out = dataset(pairs)
    data.prepare([0, 1, 2])
    assert not left_out and data.has_references
    for indices, red in (([0, 1], (100, 150)), ([1, 0], (150, 100)), ([2], (200,))):
        ((context, extra),) = data.cond(indices)
        (references,) = extra[REFERENCES]
        assert context.tolist() == indices and extra["pooled_output"] is None
        expected = torch.tensor(red) / 255
        torch.testing.assert_close(references[:, 0].mean((1, 2)), expected, atol=0.005, rtol=0)
    assert REFERENCES not in data.captions([0])[0][1]


def test_what_has_references_of_two_shapes_does_not_share_a_forward(pairs):
    data, _ = dataset(pairs)
    data.prepare([0, 1, 2])
    assert {data.shape(i) for i in range(3)} == {(3, 8, 8)}
    groups = of_one_shape([Draw(i, data, i) for i in range(3)], Batching(shape=(3, 8, 8), batch=3, at_once=3))
    assert [[draw.index for draw in group] for group in groups] == [[0, 1], [2]]


def test_another_reference_makes_another_dataset_and_is_encoded_anew(pairs):
    data, _ = dataset(pairs)
    data.prepare([0])
    before = data.cond([0])[0][1][REFERENCES][0]
    files = set((pairs / "store").iterdir())
    again, _ = dataset(pairs)
    again.prepare([0])
    assert again.content() == data.content() and set((pairs / "store").iterdir()) == files
    picture(pairs / "before/a.jpg", color=(0, 100, 0))
    changed, _ = dataset(pairs)
    changed.prepare([0])
    assert changed.content() != data.content() and changed.content()[1:] == data.content()[1:]
    assert len(set((pairs / "store").iterdir()) - files) == 1
    assert not torch.equal(changed.cond([0])[0][1][REFERENCES][0], before)


def test_a_photo_whose_reference_cannot_be_used_is_left_out_and_said(pairs):
    picture(pairs / "before/a.jpg", 32, 32)
    data, (said,) = dataset(pairs)
    assert said.endswith(
        "a.png has a reference, a.jpg, that is 32x32, too small for 64x64, the size of its shape: take a larger one, "
        "or a smaller width and height."
    )
    assert [sized.photo.file.name for sized in data.encoded.photos] == ["b.jpg", "c.webp"]


def test_a_reference_that_turns_out_broken_takes_its_photo_with_it(pairs):
    whole = (pairs / "before/B.PNG").read_bytes()
    (pairs / "before/B.PNG").write_bytes(whole[:-40])
    data, left_out = dataset(pairs)
    assert not left_out  # its header is whole
    data.prepare([0, 1, 2])
    assert "b.jpg has a reference, B.PNG, that can't be read" in data.encoded.left_out[1]
    assert data.encoded.stand_in(1) == 2 and data.cond([1])[0][0].tolist() == [2]
    torch.testing.assert_close(data.cond([1])[0][1][REFERENCES], data.cond([2])[0][1][REFERENCES])
