"""Pictures to crops of 336 x 336 pixels, in the two layouts of EAGLE.

"grid" (the paper's): the canvas is ceil(h/336) x ceil(w/336) blocks; "overview" (what llama.cpp produces for its
resampler models): one stretched overview, then the blocks of the best canvas of a list, if the picture is larger than
one block. In both the picture is scaled (bicubic, aspect kept) to the largest size that fits the canvas, centred and
padded with black.

    processor = AutoImageProcessor.from_pretrained(repository, trust_remote_code=True)
    processor(["photo.jpg"], return_tensors="pt")      # pixel_values (total_crops, 3, 336, 336), image_sizes (1, 2)
"""

import math
import threading
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from .media_eagle import is_source, read_source

try:
    from PIL import ExifTags, Image
except ImportError:  # arrays and tensors still work
    Image = None
try:
    from torchvision.transforms.v2 import functional as torchvision_functional
except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
    torchvision_functional = None

# Mean and standard deviation of CLIP's training pictures, values in 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PIL_LIMIT = threading.Lock()


class EagleImagesKwargs(ImagesKwargs, total=False):
    image_layout: Literal["grid", "overview"] | None
    max_crops: int | None


class EagleImageProcessor(BaseImageProcessor):
    """Cut pictures into normalised crops.

    Args:
        image_layout: "grid" or "overview", see the top of this file.
        max_crops: cap of the grid layout; larger pictures are scaled down first, aspect kept.
        max_slices: cap of the overview layout's canvas, the overview not counted.
        crop_size: side of a crop in pixels.
        max_pixels: limit on height * width, checked before a file is decoded (a small file can hold a huge picture).
        image_mean, image_std: per channel, for values in 0..1.

    Raises `ValueError` for an unknown layout and for limits and sizes below what can work.
    """

    _auto_class = "AutoImageProcessor"  # saving takes this code along
    model_input_names: ClassVar = ["pixel_values", "image_sizes"]
    valid_kwargs = EagleImagesKwargs

    def __init__(
        self,
        image_layout="grid",
        max_crops=16,
        max_slices=6,
        crop_size=336,
        max_pixels=2**27,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_layout(image_layout)
        check_least("max_crops", max_crops, 1)
        check_least("max_slices", max_slices, 2)  # one slice would be the overview again
        check_least("crop_size", crop_size, 1)
        check_least("max_pixels", max_pixels, 1)
        self.image_layout = image_layout
        self.max_crops = max_crops
        self.max_slices = max_slices
        self.crop_size = crop_size
        self.max_pixels = max_pixels
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def fetch_images(self, images):
        """Open what is given as path, URL or bytes; keep lists as they are and anything else untouched."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        return self.open_image(images) if is_source(images) else images

    def open_image(self, source):
        """Open a picture without decoding it. Raises `ValueError` for what is no picture or above `max_pixels`."""
        require_pil()
        file, name = read_source(source)
        try:
            with pil_limit(self.max_pixels):
                image = Image.open(file)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"Picture {name} is above max_pixels = {self.max_pixels}: {error}") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"Cannot read {name} as a picture: {error}") from error
        self.check_size(image.height, image.width, name)
        return image

    def check_size(self, height, width, name="given"):
        if not 0 < height * width <= self.max_pixels:
            raise ValueError(
                f"Picture {name} is {width}x{height} pixels; expected at least 1x1 and at most max_pixels = "
                f"{self.max_pixels} in all."
            )

    def preprocess(self, images, image_layout=None, max_crops=None, return_tensors=None, device=None):
        """Cut pictures into crops.

        Args:
            images: one picture or a (nested) list: PIL of any mode, path, bytes, URL, numpy (h, w[, c]), torch
                ([c,] h, w). Transparent parts become white; of an animation the first frame is taken.
            image_layout, max_crops: override the processor's own.
            return_tensors: "pt" or "np"; without it the values are torch tensors.

        Returns:
            `pixel_values` float32 (total_crops, 3, crop_size, crop_size), crops of a picture row by row, and
            `image_sizes` int64 (pictures, 2), heights and widths as given.

        Raises `ValueError` for damaged files, pictures that are empty, too large or hold NaN, unknown layouts and
        `max_crops` below 1.
        """
        arrays = [self.to_rgb(image) for image in flatten(self.fetch_images(images))]
        crops = [self.cut(array, image_layout, max_crops) for array in arrays]
        pixels = torch.from_numpy(np.concatenate(crops)).to(device).permute(0, 3, 1, 2).contiguous().float()
        mean, std = torch.tensor([self.image_mean, self.image_std], device=pixels.device)[:, :, None, None]
        sizes = torch.tensor([array.shape[:2] for array in arrays])
        data = {"pixel_values": pixels.div_(255 * std).sub_(mean / std), "image_sizes": sizes}
        return BatchFeature(data, tensor_type=return_tensors)

    def to_rgb(self, image):
        """One picture as uint8 (h, w, 3)."""
        if Image is not None and isinstance(image, Image.Image):
            self.check_size(image.height, image.width)
            return pil_to_rgb(image)
        array = array_to_rgb(image)
        self.check_size(*array.shape[:2])
        return array

    def get_crop_grid(self, height, width, image_layout=None, max_crops=None):
        """Rows and columns of the canvas of a picture; (0, 0) for an overview alone."""
        check_layout(image_layout or self.image_layout)
        if (image_layout or self.image_layout) == "grid":
            max_crops = self.max_crops if max_crops is None else max_crops
            check_least("max_crops", max_crops, 1)
            return grid_canvas(height, width, self.crop_size, max_crops)
        return overview_canvas(height, width, self.crop_size, self.max_slices)

    def get_number_of_image_patches(self, height, width, images_kwargs=None):
        """Number of crops of a picture of this size (the name is transformers')."""
        options = {key: (images_kwargs or {}).get(key) for key in ("image_layout", "max_crops")}
        rows, columns = self.get_crop_grid(height, width, **options)
        layout = options["image_layout"] or self.image_layout
        return rows * columns + (layout == "overview")

    def cut(self, array, image_layout, max_crops):
        """Crops of one picture, uint8 (crops, crop_size, crop_size, 3); the overview comes first."""
        size = self.crop_size
        rows, columns = self.get_crop_grid(*array.shape[:2], image_layout, max_crops)
        canvas = fit(array, rows * size, columns * size)
        blocks = canvas.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
        if (image_layout or self.image_layout) == "grid":
            return blocks
        return np.concatenate([resize(array, size, size)[None], blocks])


def check_layout(image_layout):
    if image_layout not in ("grid", "overview"):
        raise ValueError(f"image_layout is {image_layout!r}; use 'grid' or 'overview'.")


def check_least(name, value, least):
    if not value >= least:
        raise ValueError(f"{name} is {value!r}; expected at least {least}.")


@contextmanager
def pil_limit(pixels):
    """PIL has a limit of its own, one for the whole process; here it stands at `pixels` for a moment."""
    with PIL_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def require_pil():
    if Image is None:
        raise ImportError("Reading picture files needs Pillow: pip install pillow.")


def flatten(images):
    """Flat list of pictures; an array with a batch axis counts as a list."""
    if isinstance(images, (list, tuple)):
        return [flat for image in images for flat in flatten(image)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def grid_canvas(height, width, crop_size, max_crops):
    """Rows and columns of the grid layout: ceil(h / 336) x ceil(w / 336) up to `max_crops` blocks.

    Above that, the canvas of at most `max_crops` blocks on which the picture is largest; of equals the smallest.
    """
    rows, columns = math.ceil(height / crop_size), math.ceil(width / crop_size)
    if rows * columns <= max_crops:
        return rows, columns
    canvases = [(r, c) for r in range(1, max_crops + 1) for c in range(1, max_crops // r + 1)]
    return max(canvases, key=lambda rc: (min(rc[0] / height, rc[1] / width), -rc[0] * rc[1]))


def grid_pinpoints(max_slices):
    """Canvases (rows, columns) of the overview layout in the order the GGUF lists them: the first of equals wins."""
    sides = range(1, max_slices + 1)
    return [(rows, columns) for rows in sides for columns in sides if 1 < rows * columns <= max_slices]


def overview_canvas(height, width, crop_size, max_slices):
    """Rows and columns of the overview layout's slices: LLaVA's rule, (0, 0) if the picture fits one crop.

    Most pixels of the picture kept, then least canvas wasted; in float32 like llama.cpp, whose choice this must equal.
    """
    if max(height, width) <= crop_size:
        return 0, 0

    def rank(canvas):
        rows, columns = canvas
        scales = np.float32(columns * crop_size) / np.float32(width), np.float32(rows * crop_size) / np.float32(height)
        kept = min(int(width * min(scales)) * int(height * min(scales)), height * width)
        return kept, kept - rows * columns * crop_size**2

    return max(grid_pinpoints(max_slices), key=rank)


def fit(array, height, width):
    """Scale a picture to the largest size that fits (height, width), aspect kept, centred on black."""
    canvas = np.zeros((height, width, 3), np.uint8)
    if not canvas.size:
        return canvas
    scale = min(height / array.shape[0], width / array.shape[1])
    new_height = min(math.ceil(array.shape[0] * scale), height)
    new_width = min(math.ceil(array.shape[1] * scale), width)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = resize(array, new_height, new_width)
    return canvas


def resize(array, height, width):
    """Bicubic with antialiasing, uint8 (h, w, 3): torchvision, or PIL where it is missing; they differ by rounding."""
    if array.shape[:2] == (height, width):
        return array
    if torchvision_functional is None:
        require_pil()
        return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    picture = torch.from_numpy(array).permute(2, 0, 1)
    mode = torchvision_functional.InterpolationMode.BICUBIC
    return torchvision_functional.resize(picture, [height, width], mode, antialias=True).permute(1, 2, 0).numpy()


def pil_to_rgb(image):
    """Decode a PIL picture of any mode to uint8 (h, w, 3), turned upright by its EXIF orientation."""
    try:
        if image.tell():
            image.seek(0)
        image.load()
        image = upright(image)
        if image.mode == "F" or image.mode.startswith("I"):
            return array_to_rgb(integers_to_16_bit(image))
        if image.has_transparency_data:
            return array_to_rgb(np.asarray(image.convert("RGBA")))
        return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        name = getattr(image, "filename", "") or f"in mode {image.mode}"
        raise ValueError(f"Cannot read picture {name}: {error}") from error


def upright(image):
    """Apply the EXIF orientation, as every viewer does with a phone's photos."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def integers_to_16_bit(image):
    """Array of a PIL picture of more than 8 bits. Mode "I" is 32 bits wide but made of 16-bit or 8-bit files."""
    array = np.asarray(image)
    if image.mode == "F":
        return array
    return array.clip(0, 65535).astype(np.uint16 if image.mode != "I" or array.max() > 255 else np.uint8)


def array_to_rgb(image):
    """A numpy (h, w[, c]) or torch ([c,] h, w) picture as uint8 (h, w, 3).

    1 to 4 channels: grey, grey and alpha, RGB, RGBA; alpha is blended with white. uint8, uint16, bool, or numbers in
    0..1 or 0..255.
    """
    is_tensor = isinstance(image, torch.Tensor)
    array = image.detach().cpu().numpy() if is_tensor else np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise ValueError(f"A picture has 2 or 3 axes, got an array of shape {array.shape}.")
    channels_first = array.shape[0] <= 4 and (is_tensor or array.shape[-1] > 4)
    array = to_uint8(np.moveaxis(array, 0, -1) if channels_first else array)
    if not 1 <= array.shape[-1] <= 4:
        raise ValueError(f"A picture has 1 to 4 channels, got an array of shape {tuple(image.shape)}.")
    if array.shape[-1] in (2, 4):
        alpha = array[..., -1:].astype(np.uint16)
        array = ((array[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(array, 3, -1) if array.shape[-1] == 1 else array)


def to_uint8(array):
    """Scale pixel values to 0..255 by their type or, for other numbers, by their range."""
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 255):  # also false for NaN
        raise ValueError(f"Pixel values lie in {low:g}..{high:g}; expected 0..1 or 0..255, not normalised, no NaN.")
    is_unit = high <= 1 and np.issubdtype(array.dtype, np.floating)
    return np.rint(array.astype(np.float32) * (255 if is_unit else 1)).astype(np.uint8)


__all__ = ["EagleImageProcessor"]
