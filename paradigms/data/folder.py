"""A folder of labelled images as a data set."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.data.cache import Data

_MODES = {1: "L", 3: "RGB"}


def from_folder(
    path: str | os.PathLike[str], size: tuple[int, int], channels: int = 3
) -> tuple[Data, list[str]]:
    """Reads images from one sub-folder per class, all into RAM.

    Classes are numbered in the sorted order of their names, and files come in sorted order within
    each; names that start with a dot are skipped. Images are turned upright by their EXIF tag and
    resized by Pillow's antialiased bilinear filter, without keeping the aspect ratio.

    Args:
      path: the folder.
      size: (H, W) of the result.
      channels: 3 for RGB, 1 for grey.

    Returns:
      `image`, uint8 [N, H, W, C], with `label`, int32 [N], and the names of the classes.

    Raises:
      InputError: no such folder, an empty class, or a file that Pillow cannot read, that has more
        pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or more than 8 bits a channel.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data", "reading images") from error
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: expected one sub-folder of images per class")
    if channels not in _MODES:
        raise InputError(f"channels={channels}: choose 3 for RGB or 1 for grey")
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"size={size}: give a positive (height, width)")
    folders = sorted(item for item in _visible(root) if item.is_dir())
    if not folders:
        raise InputError(f"{root} has no sub-folders: expected one sub-folder of images per class")
    files = [(file, i) for i, folder in enumerate(folders) for file in sorted(_visible(folder))]
    label = np.array([i for _, i in files], np.int32)
    for i, folder in enumerate(folders):
        if i not in label:
            raise InputError(f"{folder} has no images: add some or remove the folder")
    image = np.empty((len(files), height, width, channels), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for row, (file, _) in enumerate(files):
            image[row] = _read(Image, file, height, width, channels)
    return {"image": image, "label": label}, [folder.name for folder in folders]


def _visible(folder: Path) -> list[Path]:
    return [item for item in folder.iterdir() if not item.name.startswith(".")]


def _read(Image: Any, file: Path, height: int, width: int, channels: int) -> np.ndarray:
    from PIL import ImageOps

    try:
        with Image.open(file) as picture:
            if picture.mode[0] in "IF":  # Pillow would clip these to 255, not scale them.
                raise InputError(
                    f"{file}: more than 8 bits a channel (mode {picture.mode}); convert it first"
                )
            upright = ImageOps.exif_transpose(picture).convert(_MODES[channels])
            resized = upright.resize((width, height), Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{file}: more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller, or raise "
            f"PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file}: not a readable image ({error}); mend or remove it") from error
    return np.asarray(resized).reshape(height, width, channels)
