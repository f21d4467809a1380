"""A classifier of photos, with what it wants to see."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from addis import data, models

__all__ = ["PhotoModel", "open_photo", "photo_model"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class PhotoModel:
    """A classifier and what it wants to see.

    Args:
        source: Its name in addis, or "module:factory".
        module: The classifier, in evaluation mode.
        size: Side of its input in pixels.
        mean: Mean of each channel that it was trained with.
        std: Standard deviation of each channel.
        classes: Their names, if known.
        photos: Name of a data set like the one it was trained on.
        device: Where it is.
    """

    source: str
    module: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    photos: str
    device: str

    def name(self, index: int) -> str:
        """The class's name and number."""
        return f"{self.classes[index]} ({index})" if index < len(self.classes) else str(index)

    def prepare(self, image: Image.Image) -> Tensor:
        """The middle of a photo as the model takes it, ``(1, 3, S, S)``."""
        short = round(self.size * 256 / 224) if self.size >= 128 else self.size
        scale = short / min(image.size)
        width, height = (max(round(side * scale), self.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).to(self.device)

    def pixels(self, x: Tensor) -> Tensor:
        """The input as a picture in ``[0, 1]`` again."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x.cpu() * std + mean).clamp(0, 1)


def photo_model(name: str, weights: Path | None, size: int | None, device: str) -> PhotoModel:
    """The model of a name, with published weights or those of a file.

    Args:
        name: Name of a model of addis, "timm/NAME", "torchvision/NAME", or "module:factory".
        weights: File of weights.
        size: Side of the input; by default what is known of the model.
        device: Torch device.

    Raises:
        ValueError: It takes no photos.
    """
    own_factory = ":" in name
    module = models.create(
        name, pretrained=weights is None and not own_factory, weights=weights, device=device
    )
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    side, photos = size or 224, "imagenet_samples"
    classes: tuple[str, ...] = ()
    if not own_factory:
        known = models.info(name)
        if len(known.mean) != 3:
            raise ValueError(f"model {name} takes images of {len(known.mean)} channels, not photos")
        mean, std, side = known.mean, known.std, size or known.input_size[-1]
        photos = "cifar10" if name.startswith("cifar10") else photos
        try:
            classes = tuple(getattr(data.load(photos), "classes", ()))
        except FileNotFoundError:
            classes = ()
        classes = classes if len(classes) == known.num_classes else ()
    return PhotoModel(name, module.eval(), side, mean, std, classes, photos, device)


def open_photo(path: Path) -> Image.Image:
    """A photo as RGB, turned as its camera says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, is damaged, or would unpack to far too many pixels.
    """
    if not path.is_file():
        raise FileNotFoundError(f"photo: there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"photo: {path} has more than the {most} pixels allowed") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"photo: {path} is not an image file that can be read") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"photo: {path} is damaged: {error}") from error
