"""Data sets as tensors: split them, and draw augmented batches.

The test splits are not loaded here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpo.settings import Augment

VALIDATION_SHARE = 0.1
"""Fraction of the training images that is set aside for validation."""

SPLIT_SEED = 0  # the splits are the same for every study, so that studies can be compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The images and labels of one split.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N], each the index of a class.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """Select some of the images, in the order of `indices` (int64 [n])."""
        return Split(images=self.images[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> Split:
        """Copy the split to a device."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A data set's training and validation split, and how it is augmented.

    Attributes:
        classes: Names of the classes.
        mean: Mean pixel of the training split per channel, in [0, 255], float32 [C].
        std: Standard deviation, likewise.
        padding: Zero pixels on each side before a random crop of the original size.
        flip: Whether half of the images are mirrored left to right.
        checksum: SHA-256 of both splits; of the user's own images, that of their file of tensors.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    mean: Tensor
    std: Tensor
    padding: int
    flip: bool
    checksum: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def augment(self) -> Augment:
        """Return the augmentation in the words of the settings."""
        if self.padding == 0:
            return "none"
        return "crop,flip" if self.flip else "crop"

    def to(self, device: torch.device) -> Dataset:
        """Copy the whole data set to a device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


def split_dataset(name: str, whole: Split, *, classes: tuple[str, ...], augment: Augment) -> Dataset:
    """Set aside a stratified tenth for validation, always with the same seed."""
    train, validation = stratified_split(whole, VALIDATION_SHARE)
    pixels = train.images.to(torch.float32)
    return Dataset(
        name=name,
        classes=classes,
        train=train,
        validation=validation,
        mean=pixels.mean(dim=(0, 1, 2)),
        std=pixels.std(dim=(0, 1, 2)),
        padding=padding_for(augment, *train.images.shape[1:3]),
        flip=augment == "crop,flip",
        checksum=_checksum(train, validation),
    )


def padding_for(augment: Augment, height: int, width: int) -> int:
    """Return an eighth of the shorter side: 4 for images of 32 (He et al. 2015, §4.2); or 0 without crops."""
    return 0 if augment == "none" else math.ceil(min(height, width) / 8)


def stratified_split(whole: Split, share: float) -> tuple[Split, Split]:
    """Split in two, with equal proportions of the classes; the second part has the given share of the images."""
    first, second = stratified_positions(whole.labels.numpy(), share)
    return whole.take(torch.from_numpy(first)), whole.take(torch.from_numpy(second))


def stratified_positions(labels: npt.NDArray[np.int64], share: float) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the sorted positions of both parts of a stratified split."""
    from sklearn.model_selection import train_test_split  # here, as a worker that maps its images does without it

    parts = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=SPLIT_SEED)
    return tuple(np.sort(part) for part in parts)


def _checksum(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.images.numpy().tobytes())
        digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()


class Batches:
    """Augmented training batches, each of which depends on its generator alone.

    Args:
        dataset: On the device on which the batches are wanted.

    Attributes:
        batch_size: Images per batch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, dtype: torch.dtype = torch.float32) -> None:
        height, width, _ = dataset.image_shape
        device = dataset.train.images.device
        self._rows = torch.arange(height, device=device)
        self._columns = torch.arange(width, device=device)
        self._dataset = dataset
        self.batch_size = min(batch_size, len(dataset.train))
        self._dtype = dtype

    @property
    def per_epoch(self) -> int:
        """Count the full batches in the training split."""
        return len(self._dataset.train) // self.batch_size

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw an epoch's batches as indices, int64 [per_epoch, batch]."""
        device = self._dataset.train.images.device
        order = torch.randperm(len(self._dataset.train), generator=generator, device=device)
        return order[: self.per_epoch * self.batch_size].reshape(self.per_epoch, self.batch_size)

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Crop, mirror and normalise the images at `indices` (int64 [N]).

        Returns:
            Images [N, C, H, W], channels last in memory, and labels int64 [N].
        """
        pad, device, n = self._dataset.padding, indices.device, len(indices)
        padded = torch.nn.functional.pad(self._dataset.train.images[indices], (0, 0, pad, pad, pad, pad))
        shifts = 2 * pad + 1
        dy, dx = torch.randint(shifts, (2, n, 1), generator=generator, device=device)
        rows, columns = self._rows + dy, (self._columns + dx)
        if self._dataset.flip:
            mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        first = torch.arange(n, device=device)[:, None] * padded.shape[1] + rows
        at = first[:, :, None] * padded.shape[2] + columns[:, None, :]
        pixels = padded.reshape(-1, padded.shape[3]).index_select(0, at.reshape(-1)).reshape(*at.shape, -1)
        return normalise(pixels, self._dataset, self._dtype), self._dataset.train.labels[indices]


def normalise(images: Tensor, dataset: Dataset, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 [N, H, W, C] into [N, C, H, W], with mean 0 and deviation 1 over the training split."""
    return ((images.to(dtype) - dataset.mean) / dataset.std).permute(0, 3, 1, 2)
