"""Oriented gradients: of known pictures, of length 1, and of nobody else's data."""

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ConfigError, DataError
from atoll.data.examples import Dataset, Examples


def seen(images: np.ndarray, **values: int) -> np.ndarray:
    rows = Examples(images, np.zeros(len(images), int))
    made = at.oriented_gradients(Dataset("few", rows, classes=("picture",)), **values)
    return np.asarray(made.train.x)


def test_a_step_points_one_way() -> None:
    """Dark to light, left to right, is direction 0; the other way is opposite; down is a quarter turn."""
    step = np.zeros((1, 8, 8), np.float32)
    step[:, :, 4:] = 1
    down = step.transpose(0, 2, 1)
    for image, bin_ in ((step, 0), (1 - step, 4), (down, 2), (1 - down, 6)):
        found = seen(image.reshape(1, 64), cell=4).reshape(4, 8)
        assert (found.sum(axis=0) > 0).tolist() == [k == bin_ for k in range(8)]


def test_every_image_has_length_one_and_depends_on_itself_alone() -> None:
    images = np.random.default_rng(0).random((30, 784)).astype(np.float32)
    found = seen(images)
    assert found.shape == (30, 392)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[3:5], seen(images[3:5]), rtol=1e-6)
    np.testing.assert_allclose(seen(images * 0.5), found, atol=1e-4), "and not on its brightness"
    assert (seen(np.ones((1, 64), np.float32)) == 0).all(), "an empty image has no gradients"
    assert (seen(images.reshape(30, 1, 28, 28)) == found).all()


def test_what_are_no_images() -> None:
    with pytest.raises(DataError, match="no square images"):
        seen(np.zeros((2, 30), np.float32))
    with pytest.raises(DataError, match="whose side 5 divides"):
        seen(np.zeros((2, 64), np.float32), cell=5)
    with pytest.raises(ConfigError, match="at least 2"):
        seen(np.zeros((2, 64), np.float32), bins=1)
