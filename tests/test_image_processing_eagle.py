"""Pictures to crops: both layouts, every kind of picture, both resizing backends, and what is refused."""

import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from eagle import image_processing_eagle as module
from eagle.image_processing_eagle import CLIP_MEAN, CLIP_STD, EagleImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.image_processing_utils import select_best_resolution

PROCESSOR = EagleImageProcessor()
SIZES = st.integers(1, 4000)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9), np.cos(columns / 13), np.sin((rows + columns) / 17)]
    return (np.stack(waves, -1) * 127 + 128).astype(np.uint8)


def pixels(outputs):
    """Undo the normalisation: (crops, 336, 336, 3) in 0..255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((outputs.pixel_values * std + mean) * 255).permute(0, 2, 3, 1).numpy()


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@given(SIZES, SIZES)
def test_grid_under_the_cap_is_the_papers_formula(height, width):
    blocks = math.ceil(height / 336) * math.ceil(width / 336)
    rows, columns = PROCESSOR.get_crop_grid(height, width, max_crops=blocks)
    assert (rows, columns) == (math.ceil(height / 336), math.ceil(width / 336))


@given(st.integers(1, 30000), st.integers(1, 30000), st.integers(1, 20))
def test_grid_over_the_cap_is_the_canvas_on_which_the_picture_is_largest(height, width, max_crops):
    rows, columns = PROCESSOR.get_crop_grid(height, width, max_crops=max_crops)
    assert rows * columns <= max_crops
    scale = min(rows * 336 / height, columns * 336 / width)
    canvases = [(r, c) for r in range(1, max_crops + 1) for c in range(1, max_crops // r + 1)]
    if math.ceil(height / 336) * math.ceil(width / 336) > max_crops:
        assert scale == pytest.approx(max(min(r * 336 / height, c * 336 / width) for r, c in canvases))
        assert scale < 1


@given(SIZES, SIZES)
def test_overview_canvas_is_llavas_rule(height, width):
    rows, columns = PROCESSOR.get_crop_grid(height, width, image_layout="overview")
    if max(height, width) <= 336:
        assert (rows, columns) == (0, 0)
        return
    canvases = [(r * 336, c * 336) for r in range(1, 7) for c in range(1, 7) if 1 < r * c <= 6]
    best = select_best_resolution((height, width), canvases)

    def kept(canvas):  # transformers computes in float64, llama.cpp and we in float32: allow one row or column less
        scale = min(canvas[0] / height, canvas[1] / width)
        return min(int(width * scale) * int(height * scale), height * width)

    assert kept((rows * 336, columns * 336)) >= kept(best) - height - width


@pytest.mark.parametrize("size, crops", [((672, 672), 5), ((300, 500), 3), ((336, 336), 1), ((100, 40), 1)])
def test_overview_counts_of_llama_cpp(size, crops):
    outputs = PROCESSOR([noise(*size)], image_layout="overview")
    assert outputs.pixel_values.shape == (crops, 3, 336, 336)
    assert PROCESSOR.get_number_of_image_patches(*size, {"image_layout": "overview"}) == crops


def test_grid_cuts_an_exact_picture_row_by_row():
    image = noise(672, 1008)
    blocks = [image[top : top + 336, left : left + 336] for top in (0, 336) for left in (0, 336, 672)]
    outputs = PROCESSOR(image)
    assert outputs.image_sizes.tolist() == [[672, 1008]]
    np.testing.assert_allclose(pixels(outputs), np.stack(blocks), atol=1e-3)


def test_grid_scales_to_the_canvas_and_centres_on_black():
    image = np.full((300, 500, 3), 200, np.uint8)  # canvas 336 x 672, scale 1.12: 336 x 560, 56 black on each side
    canvas = np.concatenate(list(pixels(PROCESSOR(image))), axis=1)
    assert np.allclose(canvas[:, 56:-56], 200, atol=1e-3)
    assert np.allclose(canvas[:, :56], 0, atol=1e-3) and np.allclose(canvas[:, -56:], 0, atol=1e-3)


def test_overview_is_the_stretched_picture_and_then_its_slices():
    image = noise(336, 672)
    overview, left, right = pixels(PROCESSOR(image, image_layout="overview"))
    stretched = np.asarray(Image.fromarray(image).resize((336, 336), Image.Resampling.BICUBIC))
    assert np.abs(overview - stretched).max() <= 1.01
    np.testing.assert_allclose(np.concatenate([left, right], 1), image, atol=1e-3)


def test_pixel_values_are_normalised_as_clip_expects():
    white = PROCESSOR(np.full((10, 10, 3), 255, np.uint8)).pixel_values
    expected = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(white.mean((0, 2, 3)), expected, atol=1e-5)
    assert white.dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 1), (100, 700), (500, 300), (1300, 90), (2000, 2000)])
@pytest.mark.parametrize("layout", ["grid", "overview"])
def test_pil_where_torchvision_is_absent_gives_nearly_the_same(size, layout, monkeypatch):
    image = smooth(*size)
    with_torchvision = pixels(PROCESSOR(image, image_layout=layout))
    monkeypatch.setattr(module, "torchvision_functional", None)
    with_pil = pixels(PROCESSOR(image, image_layout=layout))
    difference = np.abs(with_torchvision - with_pil)
    assert difference.max() <= 2.01 and difference.mean() < 0.1


def test_several_pictures_stay_in_order_and_nesting_does_not_matter():
    images = [noise(300, 300, seed=1), noise(672, 300, seed=2), noise(10, 20, seed=3)]
    alone = torch.cat([PROCESSOR(image).pixel_values for image in images])
    for given_as in (images, [images[:1], [], images[1:]], tuple(images)):
        outputs = PROCESSOR(given_as)
        assert torch.equal(outputs.pixel_values, alone)
        assert outputs.image_sizes.tolist() == [[300, 300], [672, 300], [10, 20]]


def test_every_way_to_give_a_picture_is_the_same(tmp_path):
    array = noise(50, 40)
    image = Image.fromarray(array)
    image.save(tmp_path / "picture.png")
    data = encode(image)
    expected = PROCESSOR(array).pixel_values
    for given_as in (
        image,
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array),
        array.transpose(2, 0, 1),
        array.astype(np.float32) / 255,
        array.astype(np.float64),
        array.astype(np.int64),
        array.astype(np.uint16) * 257,
        array[None],
        data,
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "picture.png")},
    ):
        assert torch.equal(PROCESSOR(given_as).pixel_values, expected)


def test_numpy_tensors_on_request():
    outputs = PROCESSOR(noise(8, 8), return_tensors="np")
    assert isinstance(outputs["pixel_values"], np.ndarray) and outputs["pixel_values"].dtype == np.float32


def test_grey_pictures_repeat_their_channel():
    grey = noise(336, 336, 1)
    expected = np.repeat(grey, 3, -1)[None]
    for image in (grey, grey[..., 0], Image.fromarray(grey[..., 0]), grey[..., 0].astype(np.float32)):
        np.testing.assert_allclose(pixels(PROCESSOR(image)), expected, atol=1e-3)
    bilevel = np.eye(336, dtype=bool)
    for image in (bilevel, Image.fromarray(bilevel)):
        np.testing.assert_allclose(pixels(PROCESSOR(image))[0, ..., 1], bilevel * 255.0, atol=1e-3)


def test_transparent_parts_become_white():
    picture = np.zeros((336, 336, 4), np.uint8)
    picture[:, :112] = (200, 100, 50, 255)
    picture[:, 112:224] = (200, 100, 50, 0)
    picture[:, 224:] = (0, 0, 0, 102)  # 40 % black on white
    colours = np.array([[200, 100, 50], [255, 255, 255], [153, 153, 153]])
    expected = np.repeat(np.repeat(colours[None], 112, 1), 336, 0)
    for image in (picture, Image.fromarray(picture), encode(Image.fromarray(picture))):
        np.testing.assert_allclose(pixels(PROCESSOR(image))[0], expected, atol=1e-3)


def test_palette_pictures_with_and_without_transparency():
    palette = Image.new("P", (336, 336), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert np.allclose(pixels(PROCESSOR(palette)), [10, 200, 30], atol=1e-3)
    data = encode(palette, transparency=1)
    assert np.allclose(pixels(PROCESSOR(data)), 255, atol=1e-3)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "RGBa", "1", "L"])
def test_other_pil_modes_give_what_pil_converts(mode):
    colour = Image.new("RGB", (336, 336), (180, 40, 90))
    image = colour.convert("L").convert(mode) if mode in ("LA", "PA", "1") else colour.convert("RGBA").convert(mode)
    assert np.allclose(pixels(PROCESSOR(image))[0], np.asarray(image.convert("RGBA").convert("RGB")), atol=1.01)


def test_cmyk_jpeg_and_16_bit_png_files():
    cmyk = Image.new("RGB", (336, 336), (0, 128, 255)).convert("CMYK")
    assert np.allclose(pixels(PROCESSOR(encode(cmyk, "JPEG"))), (0, 128, 255), atol=4)
    deep = Image.fromarray(np.full((336, 336), 40000, np.uint16))
    assert np.allclose(pixels(PROCESSOR(encode(deep))), 40000 / 257, atol=1)
    assert np.allclose(pixels(PROCESSOR(deep)), 40000 / 257, atol=1)
    assert np.allclose(pixels(PROCESSOR(Image.new("I", (9, 9), 200))), 200, atol=1)
    assert np.allclose(pixels(PROCESSOR(Image.new("F", (9, 9), 0.5))), 128, atol=1)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (336, 336), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    opened = Image.open(io.BytesIO(data))
    opened.seek(2)
    for image in (data, opened):
        assert np.allclose(pixels(PROCESSOR(image)), (255, 0, 0), atol=3)  # WebP is lossy


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(orientation):
    image = Image.fromarray(smooth(64, 96))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    outputs = PROCESSOR(data)
    assert outputs.image_sizes.tolist() == [[upright.height, upright.width]]
    assert torch.equal(outputs.pixel_values, PROCESSOR(np.asarray(upright)).pixel_values)


def test_one_pixel_is_a_picture():
    assert np.allclose(pixels(PROCESSOR(Image.new("RGB", (1, 1), (9, 99, 199)))), (9, 99, 199), atol=1e-3)


def test_extremely_long_pictures_work():
    assert PROCESSOR(noise(1, 20000)).pixel_values.shape[0] == 16
    assert PROCESSOR(noise(20000, 1), image_layout="overview").pixel_values.shape[0] == 3


def png_header(width, height):
    """A PNG that announces that size, with hardly a pixel behind it."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixel = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [chunk, pixel]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in chunks
    )


@pytest.mark.parametrize("side", [12000, 20000, 60000])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bombs_are_refused_before_decoding(side, action):
    with warnings.catch_warnings(action=action), pytest.raises(ValueError, match=r"max_pixels = 134217728"):
        PROCESSOR(png_header(side, side))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [11000, 20000, 60000])  # PIL warns from 9459 on and refuses from 13378
def test_not_pils_limit_counts_but_ours(side):
    limit = Image.MAX_IMAGE_PIXELS
    assert EagleImageProcessor(max_pixels=10**10).open_image(png_header(side, side)).size == (side, side)
    assert limit == Image.MAX_IMAGE_PIXELS == 89478485, "it is the whole process's: others rely on it"


def test_bombs_within_icons_are_refused_too():
    """Icons of 16 x 16 and 128 x 128 by their directories, which hold pictures of 20000 x 20000."""
    bomb = png_header(20000, 20000)
    ico = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    icns = b"icns" + struct.pack(">I", 16 + len(bomb)) + b"ic07" + struct.pack(">I", 8 + len(bomb)) + bomb
    for icon in (ico, icns):
        with pytest.raises(ValueError, match="400000000 pixels"):
            PROCESSOR(icon)


def test_large_pictures_in_memory_are_limited_too():
    processor = EagleImageProcessor(max_pixels=100)
    for image in (noise(11, 10), Image.new("RGB", (10, 11))):
        with pytest.raises(ValueError, match="10x11 pixels.*max_pixels = 100"):
            processor(image)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_truncated_files_are_refused(format, tmp_path):
    data = encode(Image.fromarray(noise(200, 200)), format)
    (tmp_path / "half.img").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="Cannot read"):
        PROCESSOR(data[: len(data) // 2])
    with pytest.raises(ValueError, match="Cannot read .*half.img"):
        PROCESSOR(tmp_path / "half.img")


@pytest.mark.parametrize("data", [b"", b"hello, I am a text", b"RIFF\0\0\0\0WAVE", bytes(1000)])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError, match="Cannot read"):
        PROCESSOR(data)


def test_missing_files_and_foreign_objects_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        PROCESSOR(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="axes"):
        PROCESSOR(3)


@pytest.mark.parametrize(
    "image, reason",
    [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), np.inf), "NaN"),
        (np.full((4, 4, 3), -1.0), "0..1 or 0..255"),
        (np.full((4, 4, 3), 256), "0..1 or 0..255"),
        (np.zeros((0, 4, 3), np.uint8), "at least 1x1"),
        (np.zeros((9, 9, 7), np.uint8), "1 to 4 channels"),
        (np.zeros(4), "axes"),
    ],
)
def test_arrays_that_are_no_pictures_say_why(image, reason):
    with pytest.raises(ValueError, match=reason):
        PROCESSOR(image)


@pytest.mark.parametrize("name, least", [("max_crops", 1), ("max_slices", 2), ("crop_size", 1), ("max_pixels", 1)])
def test_limits_below_what_can_work_are_refused(name, least):
    for value in (least - 1, -5):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected at least {least}"):
            EagleImageProcessor(**{name: value})
    EagleImageProcessor(**{name: least})


@pytest.mark.parametrize("max_crops", [0, -1])
def test_a_limit_given_in_the_call_is_checked_too(max_crops):
    with pytest.raises(ValueError, match=f"max_crops is {max_crops}; expected at least 1"):
        PROCESSOR(noise(4, 4), max_crops=max_crops)
    with pytest.raises(ValueError, match=f"max_crops is {max_crops}; expected at least 1"):
        PROCESSOR.get_number_of_image_patches(4, 4, {"max_crops": max_crops})


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match="mosaic"):
        EagleImageProcessor(image_layout="mosaic")
    with pytest.raises(ValueError, match="mosaic"):
        PROCESSOR(noise(4, 4), image_layout="mosaic")


@settings(max_examples=30)
@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from(["grid", "overview"]))
def test_crops_are_as_many_as_announced(height, width, layout):
    outputs = PROCESSOR(np.zeros((height, width, 3), np.uint8), image_layout=layout)
    assert len(outputs.pixel_values) == PROCESSOR.get_number_of_image_patches(height, width, {"image_layout": layout})


def test_saving_and_loading_keeps_the_settings(tmp_path):
    EagleImageProcessor(image_layout="overview", max_crops=4, max_slices=3).save_pretrained(tmp_path)
    loaded = EagleImageProcessor.from_pretrained(tmp_path)
    assert (loaded.image_layout, loaded.max_crops, loaded.max_slices) == ("overview", 4, 3)
