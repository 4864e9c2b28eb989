"""How small a small store is."""

from pathlib import Path

import numpy as np
import pytest

import raggedstore as rs

PIXELS = 29_960


def random_images(dtype: str) -> list[np.ndarray]:
    """1,000 images of random sizes and pixels, `PIXELS` of them in all."""
    rng = np.random.RandomState(0)
    sides = rng.randint(1, 11, (1000, 2))
    while sides.prod(axis=1).sum() != PIXELS:
        short = PIXELS - sides.prod(axis=1).sum()
        i, wanted = rng.randint(1000), rng.randint(1, 11, 2)
        change = wanted.prod() - sides[i].prod()
        if abs(short - change) < abs(short):
            sides[i] = wanted
    return [rng.randint(0, 256, side).astype(dtype) for side in sides]


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_thousand_small_images_take_at_most_44_kB_with_all_that_belongs_to_them(
    tmp_path: Path, dtype: str
) -> None:
    images = random_images(dtype)
    assert sum(image.size for image in images) == PIXELS
    store = rs.create(tmp_path / "store", {"image": rs.Field(dtype, (None, None))})

    with store.writer() as writer:
        writer.extend({"image": image} for image in images)

    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 44_000
    for image, got in zip(images, store["image"], strict=True):
        np.testing.assert_array_equal(got, image)
