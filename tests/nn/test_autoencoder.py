"""Encoders and decoders of images, and the similarity that one may learn by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from amiss.errors import OptionError
from amiss.nn.autoencoder import Decoder, Encoder, SmallAutoencoder, scales
from amiss.nn.ssim import ssim_map


def test_maps_are_halved_and_widened() -> None:
    assert scales((256, 256), 64, 4) == [
        (64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 16, 16),
    ]  # fmt: skip
    assert scales((64, 32), 4, 5)[-1] == (32, 2, 1)  # at most eight times the first width
    with pytest.raises(OptionError, match="cannot be halved 4 times"):
        scales((72, 64), 4, 4)


@pytest.mark.parametrize("skip", [False, True])
def test_images_become_maps_and_images_again(skip: bool) -> None:
    shapes = scales((32, 48), 4, 3)
    encoder, decoder = Encoder(3, shapes), Decoder(3, shapes, skip=skip)
    maps = encoder(torch.randn(2, 3, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == shapes
    made = decoder(maps)
    assert made.shape == (2, 3, 32, 48) and made.abs().max() <= 1
    # The large maps reach the decoder over the connections and in no other way.
    others = [torch.zeros_like(m) for m in maps[:-1]]
    decoder.eval()
    encoder.eval()
    maps = encoder(torch.randn(2, 3, 32, 48))
    assert torch.equal(decoder(maps), decoder([*others, maps[-1]])) != skip


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("mnist", (28, 28), (64, 3, 3)),
        ("mnist", (32, 28), (64, 3, 3)),
        ("cifar", (32, 32), (256, 2, 2)),
        ("cifar", (32, 48), (256, 2, 3)),
    ],
)
def test_small_networks_mirror_themselves(
    name: str, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    network = SmallAutoencoder(size, name, channels=3)
    code = network.encoder(torch.randn(2, 3, *size))
    assert tuple(code.shape[1:]) == network.shape == shape
    made = network.decoder(code)
    assert made.shape == (2, 3, *size)


def test_the_similarity_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (24, 30)).astype(np.float32)
    y = np.clip(x + random.normal(0, 0.3, x.shape), -1, 1).astype(np.float32)
    _, wanted = structural_similarity(
        x, y, data_range=2.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        full=True,
    )  # fmt: skip
    pair = [torch.from_numpy(image)[None, None] for image in (x, y)]
    found = ssim_map(pair[0], pair[1])[0].numpy()
    # Images are continued otherwise beyond their edges.
    np.testing.assert_allclose(found[5:-5, 5:-5], wanted[5:-5, 5:-5], atol=1e-5)
    three = [image.expand(1, 3, -1, -1) for image in pair]
    torch.testing.assert_close(ssim_map(three[0], three[1])[0], torch.from_numpy(found))
    torch.testing.assert_close(ssim_map(pair[0], pair[0]), torch.ones(1, 24, 30))
