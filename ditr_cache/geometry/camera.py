# SPDX-License-Identifier: Apache-2.0
"""What one camera does to points: whether it can be used at all, its transform, its lens.

N points, S points still in question. OpenCV axes (x right, y down, z forward), metres, pixels of the source image.
`uvz` is (column, row, depth): pixels and metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ditr_cache.types import Camera, Float64

__all__ = ["ROTATION_TOLERANCE", "Projector", "check_camera", "distort", "gather", "lens_radius"]

ROTATION_TOLERANCE = 1e-2
"""Largest entry of R R^T - I that still counts as a rotation; poses written with few digits miss it by about 1e-3."""

T = TypeVar("T", np.float32, np.float64)
G = TypeVar("G", bound=np.generic)

# u > -_TINY is u >= 0, and serves u, v and z with one comparison: float32 has nothing between.
_TINY = float(np.finfo(np.float32).smallest_subnormal)

# Where the limits of u, v and z go when the image grows.
_OUTWARDS = np.array([[-1, 1], [-1, 1], [0, 0]])

# Half angles up to 89.9 degrees; 0.04 degrees apart is finer than any lens is calibrated at its rim.
_RADII = np.tan(np.radians(np.linspace(0.0, 89.9, 2049)))


def check_camera(camera: Camera) -> str | None:
    """Say why a camera cannot be used.

    Args:
        camera: As found in a data set, e.g. with one of ScanNet's poses of -inf.

    Returns:
        The reason in a few words, or None if the camera is fine.
    """
    return (
        _check_size(camera.height, camera.width)
        or _check_pose(np.asarray(camera.world_to_camera))
        or _check_intrinsics(np.asarray(camera.intrinsics))
        or _check_distortion(np.asarray(camera.distortion))
    )


def _check_size(height: int, width: int) -> str | None:
    return None if height > 0 and width > 0 else f"image size {height}x{width} is not positive"


def _check_pose(pose_44: Float64) -> str | None:
    if pose_44.shape != (4, 4):
        return f"pose has shape {pose_44.shape}, not (4, 4)"
    if not np.isfinite(pose_44).all():
        return "pose is not finite"
    if np.abs(pose_44[3] - (0, 0, 0, 1)).max() > 1e-6:
        return "last row of the pose is not 0 0 0 1"
    rotation_33 = pose_44[:3, :3]
    # bounded first: the product of huge entries would overflow
    if np.abs(rotation_33).max() > 2 or np.abs(rotation_33 @ rotation_33.T - np.eye(3)).max() > ROTATION_TOLERANCE:
        return "pose is not a rotation and a translation"
    return "pose mirrors the scene" if np.linalg.det(rotation_33) < 0 else None


def _check_intrinsics(intrinsics_33: Float64) -> str | None:
    if intrinsics_33.shape != (3, 3):
        return f"intrinsics have shape {intrinsics_33.shape}, not (3, 3)"
    if not np.isfinite(intrinsics_33).all():
        return "intrinsics are not finite"
    if np.abs(intrinsics_33[2] - (0, 0, 1)).max() > 1e-6:
        return "last row of the intrinsics is not 0 0 1"
    (fx, skew), (shear, fy) = intrinsics_33[:2, :2].tolist()
    if fx <= 0 or fy <= 0:
        return f"focal length {fx:g}, {fy:g} is not positive"
    return "intrinsics are singular" if fx * fy - skew * shear <= 0 else None


def _check_distortion(distortion_8: Float64) -> str | None:
    if distortion_8.shape != (8,):
        return f"distortion has shape {distortion_8.shape}, not (8,)"
    return None if np.isfinite(distortion_8).all() else "distortion is not finite"


@dataclass(frozen=True, slots=True, eq=False)
class Projector:
    """A camera with everything that does not depend on the points."""

    rows_34: Float64
    """World to (u z, v z, z) in pixels and metres, or with a lens to (x, y, z)."""
    bounds_32: Float64
    """Limits of u, v and z, exclusive."""
    camera: Camera
    radius: float | None
    """How far the lens reaches on the plane z = 1; None without one."""

    @classmethod
    def build(cls, camera: Camera, origin_3: Float64, near: float, far: float) -> Projector:
        """Prepare for points relative to `origin_3`, seen where near < z < far.

        The origin moves into the translation in float64, so that float32 points far from the world's origin stay exact.
        """
        rows_34 = np.array(camera.world_to_camera[:3], np.float64)
        rows_34[:, 3] += rows_34[:, :3] @ origin_3
        bounds_32 = np.array([[-_TINY, camera.width], [-_TINY, camera.height], [near, far]])
        if np.any(camera.distortion):
            return cls(rows_34, bounds_32, camera, lens_radius(camera))
        return cls(camera.intrinsics @ rows_34, bounds_32, camera, None)

    def find(self, xyz_3N: NDArray[T], slack: float) -> tuple[NDArray[np.intp], NDArray[T]]:
        """Find the points in the image, in the dtype of the points.

        Args:
            xyz_3N: `[3, N]` metres, relative to the origin.
            slack: How many pixels out of the image still count as inside.

        Returns:
            Indices `[S]` of the points inside, ascending, and their `uvz [3, S]`.
        """
        uvz_3N = self._transform(xyz_3N)
        bounds_32 = self.bounds_32 + slack * _OUTWARDS
        if self.radius is None:
            inside = np.flatnonzero(_within(uvz_3N, bounds_32))
            return inside, gather(uvz_3N, inside)
        reached = np.flatnonzero(_within(uvz_3N, self._reach(self.radius)))
        uvz_3S = gather(uvz_3N, reached)
        believed_S = self._bend(uvz_3S, self.radius)
        kept = np.flatnonzero(believed_S & _within(uvz_3S, bounds_32))
        return gather(reached, kept), gather(uvz_3S, kept)

    def place(self, xyz_3N: NDArray[T]) -> tuple[NDArray[T], NDArray[np.bool_]]:
        """Project a few points, most of which lie in the image, in the dtype of the points.

        Args:
            xyz_3N: `[3, N]` metres, relative to the origin.

        Returns:
            `uvz [3, N]`, and which of them `[N]` are in the image.
        """
        uvz_3N = self._transform(xyz_3N)
        if self.radius is None:
            return uvz_3N, _within(uvz_3N, self.bounds_32)
        inside_N = _within(uvz_3N, self._reach(self.radius))
        inside_N &= self._bend(uvz_3N, self.radius)
        inside_N &= _within(uvz_3N, self.bounds_32)
        return uvz_3N, inside_N

    def _transform(self, xyz_3N: NDArray[T]) -> NDArray[T]:
        """(u, v, z), or with a lens (x / z, y / z, z)."""
        rows_34 = self.rows_34.astype(xyz_3N.dtype)
        # einsum, not matmul: BLAS brings threads of its own
        uvz_3N: NDArray[T] = np.einsum("ij,jn->in", rows_34[:, :3], xyz_3N)
        uvz_3N += rows_34[:, 3:]
        uvz_3N[:2] /= uvz_3N[2]
        return uvz_3N

    def _reach(self, radius: float) -> Float64:
        return np.array([[-radius, radius], [-radius, radius], self.bounds_32[2]])

    def _bend(self, uvz_3S: NDArray[T], radius: float) -> NDArray[np.bool_]:
        """Turn (x / z, y / z) into (u, v) through the lens; tell where it may be believed."""
        x_S, y_S = uvz_3S[:2]
        believed_S: NDArray[np.bool_] = x_S * x_S + y_S * y_S <= radius**2
        x_S, y_S = distort(x_S, y_S, self.camera.distortion)
        (fx, skew, cx), (shear, fy, cy) = self.camera.intrinsics[:2].tolist()
        uvz_3S[0] = fx * x_S + skew * y_S + cx
        uvz_3S[1] = shear * x_S + fy * y_S + cy
        return believed_S


def gather(array_XN: NDArray[G], index_S: NDArray[np.integer[Any]]) -> NDArray[G]:
    """Entries `index_S` of the last axis; those out of range give any entry: refusing them takes a third longer."""
    gathered_XS: NDArray[G] = array_XN.take(index_S, axis=-1, mode="wrap")
    return gathered_XS


def _within(uvz_3S: NDArray[T], bounds_32: Float64) -> NDArray[np.bool_]:
    bounds_32 = bounds_32.astype(uvz_3S.dtype)
    within_3S: NDArray[np.bool_] = uvz_3S > bounds_32[:, :1]
    within_3S &= uvz_3S < bounds_32[:, 1:]
    within_S: NDArray[np.bool_] = np.logical_and.reduce(within_3S, axis=0)
    return within_S


def distort(x_N: NDArray[T], y_N: NDArray[T], distortion_8: Float64) -> tuple[NDArray[T], NDArray[T]]:
    """OpenCV's rational lens model on the plane z = 1.

    Args:
        x_N: x / z.
        y_N: y / z.
        distortion_8: k1 k2 p1 p2 k3 k4 k5 k6.

    Returns:
        Distorted x and y `[N]`, in the dtype of the input.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = np.asarray(distortion_8).tolist()
    r2_N = x_N * x_N + y_N * y_N
    radial_N = 1 + r2_N * (k1 + r2_N * (k2 + r2_N * k3))
    if k4 or k5 or k6:
        radial_N /= 1 + r2_N * (k4 + r2_N * (k5 + r2_N * k6))
    xy2_N = 2 * x_N * y_N
    return (
        x_N * radial_N + p1 * xy2_N + p2 * (r2_N + 2 * x_N * x_N),
        y_N * radial_N + p1 * (r2_N + 2 * y_N * y_N) + p2 * xy2_N,
    )


def lens_radius(camera: Camera) -> float:
    """How far from the optical axis, on the plane z = 1, the lens model may be believed.

    Beyond its calibrated field the polynomial turns back, and points far outside the image would land inside it. So
    points count only up to the first radius that either lies outside the image whatever their direction, or at which
    the radial part stops growing.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = np.asarray(camera.distortion, np.float64).tolist()
    r, r2 = _RADII, _RADII**2
    with np.errstate(all="ignore"):
        distorted = r * (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        # the tangential part of a point at radius r is at most 3 r^2 |(p1, p2)| long
        outside = distorted - 3 * r2 * np.hypot(p1, p2) > _corner_radius(camera)
        # the turn itself may lie before the last sample that grew: end one earlier
        turned = np.append(~(np.diff(distorted)[1:] > 0), [True, True])
    return float(_RADII[np.argmax(outside | turned)])


def _corner_radius(camera: Camera) -> float:
    corners = np.array([[u, v, 1.0] for u in (0, camera.width) for v in (0, camera.height)])
    x, y, _ = np.linalg.inv(camera.intrinsics) @ corners.T
    return float(np.hypot(x, y).max())
