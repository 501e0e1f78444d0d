# SPDX-License-Identifier: Apache-2.0
"""What every backbone must keep to.

In a test module of your own:

```python
class TestMine(BackboneTests):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls):
        return MyBackbone()
```
"""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from ditr_cache.backbones import Backbone
from ditr_cache.errors import BackboneError

__all__ = ["BackboneTests"]


class BackboneTests:
    """Subclass it and override the fixture `backbone`."""

    grids: tuple[tuple[int, int], ...] = ((3, 5), (5, 3), (4, 4), (1, 2))
    """Patch grids (rows, columns) that are tried; none is assumed to be the trained one."""
    batch_tolerance = 1e-4
    """How much of its own largest value a feature may move when other images share its batch."""

    @pytest.fixture
    def backbone(self) -> Backbone:
        """The backbone under test."""
        raise NotImplementedError("override the fixture `backbone`")

    def images(self, backbone: Backbone, rows: int, columns: int, count: int = 2, seed: int = 0) -> torch.Tensor:
        """Random uint8 images `[count, 3, h, w]` of that many patches."""
        generator = torch.Generator().manual_seed(seed)
        size = (count, 3, rows * backbone.patch_size, columns * backbone.patch_size)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)

    def test_keeps_the_protocol(self, backbone: Backbone) -> None:
        """Attributes exist and agree with the identity."""
        assert isinstance(backbone, Backbone)
        assert backbone.identity.dim == backbone.dim > 0
        assert backbone.identity.patch_size == backbone.patch_size > 0
        assert 1 <= backbone.identity.layer <= backbone.identity.layers
        assert len(backbone.mean) == len(backbone.std) == 3
        assert min(backbone.std) > 0

    def test_identity_is_frozen_and_plain(self, backbone: Backbone) -> None:
        """The identity survives JSON, and nobody can change it."""
        plain = backbone.identity.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert len(backbone.identity.weights_sha256) == 64
        with pytest.raises(FrozenInstanceError):
            backbone.identity.dim = 1  # type: ignore[misc]

    def test_shapes_and_types(self, backbone: Backbone) -> None:
        """Float32 rows for grids of any shape, contiguous, finite, without gradients."""
        for rows, columns in self.grids:
            maps = backbone(self.images(backbone, rows, columns))
            assert maps.rows.shape == (2, rows * columns, backbone.dim)
            assert maps.rows.dtype == torch.float32
            assert maps.rows.is_contiguous()
            assert maps.rows.device.type == backbone.device.type
            assert not maps.rows.requires_grad
            assert bool(maps.rows.isfinite().all())
            assert (maps.cls is not None) == backbone.has_class_token
            if maps.cls is not None:
                assert maps.cls.shape == (2, backbone.dim)
                assert maps.cls.dtype == torch.float32
                assert bool(maps.cls.isfinite().all())

    def test_same_images_give_the_same_features(self, backbone: Backbone) -> None:
        """Twice the same call, twice the same bits; the images are left alone."""
        images = self.images(backbone, 3, 5)
        before = images.clone()
        first, second = backbone(images), backbone(images)
        assert torch.equal(first.rows, second.rows)
        assert torch.equal(images, before)

    def test_other_images_give_other_features(self, backbone: Backbone) -> None:
        """The network looks at the pixels."""
        one, other = (backbone(self.images(backbone, 3, 5, seed=seed)).rows for seed in (1, 2))
        assert not torch.allclose(one, other)

    def test_images_of_a_batch_do_not_mix(self, backbone: Backbone) -> None:
        """An image's features do not depend on what shares its batch."""
        images = self.images(backbone, 3, 5, count=3)
        together = backbone(images).rows
        for i in range(3):
            alone = backbone(images[i : i + 1]).rows[0]
            assert float((alone - together[i]).abs().max()) <= self.batch_tolerance * float(alone.abs().max())

    def test_rows_are_in_raster_order(self, backbone: Backbone) -> None:
        """Changing the pixels of one patch moves the feature of that patch most."""
        rows, columns, p = 3, 5, backbone.patch_size
        images = self.images(backbone, rows, columns, count=1)
        before = backbone(images).rows[0]
        for r in range(rows):
            for c in range(columns):
                changed = images.clone()
                changed[:, :, r * p : (r + 1) * p, c * p : (c + 1) * p] = (
                    255 - changed[:, :, r * p : (r + 1) * p, c * p : (c + 1) * p]
                )
                moved = (backbone(changed).rows[0] - before).norm(dim=1)
                assert int(moved.argmax()) == r * columns + c

    def test_unsuitable_images_are_refused(self, backbone: Backbone) -> None:
        """Other types and sizes are errors, never silently cropped or normalised twice."""
        images = self.images(backbone, 2, 2)
        for bad in (images.float(), images[0], images[:, :2], images[:, :, :-1], images[:, :, :, 1:], images[:, :, :0]):
            with pytest.raises(BackboneError):
                backbone(bad)
