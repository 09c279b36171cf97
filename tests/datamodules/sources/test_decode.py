"""Every mode of Pillow and every depth of PNG and TIFF, and the uint8 that becomes of them."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolder
from datamodules.sources.decode import decode, decode_or_name, grey_or_rgb, warn_of_dark_images

SIZE = 8


def png(path, depth, colour, pixel, transparent=None):
    """Writes a PNG of one colour by the letter of the standard, without Pillow.

    Args:
        path: path of the file.
        depth: bits per channel.
        colour: colour type of the header: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
        pixel: values of the channels.
        transparent: values of the transparent colour.
    """
    bits = "".join(format(value, f"0{depth}b") for value in pixel) * SIZE
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", SIZE, SIZE, depth, colour, 0, 0, 0),
        b"PLTE": bytes(range(256)) * 3 if colour == 3 else None,
        b"tRNS": transparent and struct.pack(f">{len(transparent)}H", *transparent),
        b"IDAT": zlib.compress(row * SIZE),
        b"IEND": b"",
    }
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks.items()
            if data is not None
        )
    )
    return path


def tiff(path, values, order="<", photometric=1, sample_format=None, bits=None):
    """Writes a grey TIFF of a single strip by the letter of the standard, without Pillow."""
    values = np.asarray(values)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind] if sample_format is None else sample_format
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = bits or 8 * values.dtype.itemsize
    if bits == 12:  # two pixels in three bytes
        flat = values.ravel().astype(int)
        data = bytes(b for a, c in zip(flat[::2], flat[1::2]) for b in (a >> 4, (a & 15) << 4 | c >> 8, c & 255))
    entries = {256: SIZE, 257: SIZE, 258: bits, 259: 1, 262: photometric, 277: 1, 278: SIZE, 279: len(data), 339: kind}
    entries = dict(sorted((entries | {273: 8 + 2 + 12 * (len(entries) + 1) + 4}).items()))
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(head + struct.pack(f"{order}IH", 8, len(entries)) + directory + struct.pack(f"{order}I", 0) + data)
    return path


def square(value, kind):
    return np.full((SIZE, SIZE), value, kind)


def both(path, **options):
    """The value of the first pixel in grey and in each channel of RGB."""
    return [int(decode(path, SIZE, 1, **options)[0, 0, 0]), *decode(path, SIZE, 3, **options)[:, 0, 0].tolist()]


# Every mode of Pillow

MODES = {  # mode: (file format that keeps it, the pixel, what it is in grey, red, green and blue)
    "1": ("png", 1, [255] * 4),
    "L": ("png", 200, [200] * 4),
    "LA": ("png", (200, 255), [200] * 4),
    "P": ("png", 1, [18, 10, 20, 30]),  # of the palette below; grey is 0.299 R + 0.587 G + 0.114 B
    "PA": ("tif", (1, 255), [18, 10, 20, 30]),
    "RGB": ("png", (10, 20, 30), [18, 10, 20, 30]),
    "RGBA": ("png", (10, 20, 30, 255), [18, 10, 20, 30]),
    "CMYK": ("tif", (245, 235, 225, 0), [18, 10, 20, 30]),
    "YCbCr": ("tif", (200, 128, 128), [200] * 4),
    "LAB": ("tif", (255, 128, 128), [255] * 4),
    "I": ("ppm", 257 * 200, [200] * 4),
    "I;16": ("png", 257 * 200, [200] * 4),
    "I;16B": ("tif", 257 * 200, [200] * 4),
    "La": (None, (200, 255), [200] * 4),  # from here on, of no file that Pillow reads
    "I;16L": (None, 257 * 200, [200] * 4),
    "I;16N": (None, 257 * 200, [200] * 4),
    "RGBX": (None, (10, 20, 30, 0), [18, 10, 20, 30]),
    "RGBa": (None, (10, 20, 30, 255), [18, 10, 20, 30]),
    "HSV": (None, (0, 0, 200), [200] * 4),
}
WITHOUT_A_RANGE = {"F"}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_each_mode_has_its_colours(mode, tmp_path):
    suffix, pixel, expected = MODES[mode]
    picture = Image.new(mode, (SIZE, SIZE), pixel if mode not in ("P", "PA") else 0)
    if mode in ("P", "PA"):
        picture.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
        picture.putdata([pixel] * SIZE**2)
    if suffix is None:
        found = [np.asarray(grey_or_rgb(picture.copy(), channels))[0, 0] for channels in (1, 3)]
        found = [found[0], *found[1]]
    else:
        picture.save(tmp_path / f"a.{suffix}")
        with Image.open(tmp_path / f"a.{suffix}") as read:
            assert read.mode == mode
        found = both(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(np.array(found, int), expected, atol=1)


def test_no_mode_of_pillow_is_forgotten():
    assert {*Image.MODES} <= MODES.keys() | WITHOUT_A_RANGE


# Every depth of PNG and TIFF


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("white", [False, True])
def test_grey_png_of_each_depth_uses_the_whole_range_and_is_white_where_it_is_transparent(depth, white, tmp_path):
    top = 2**depth - 1
    value = top if white else 0
    assert both(png(tmp_path / "a.png", depth, 0, [value])) == [255 * white] * 4
    assert both(png(tmp_path / "a.png", depth, 0, [value], transparent=[value])) == [255] * 4
    assert both(png(tmp_path / "a.png", depth, 0, [value], transparent=[top - value])) == [255 * white] * 4


@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)])
def test_png_of_each_depth_and_colour(depth, colour, tmp_path):
    pixel = [200, 200, 200][: 1 if colour == 4 else 3]
    expected = [200] * 4
    if depth == 16:  # the lower bits are not read
        pixel = [256 * value + 77 for value in pixel]
    for alpha, becomes in ((2**depth - 1, expected), (0, [255] * 4)) if colour in (4, 6) else ():
        assert both(png(tmp_path / "a.png", depth, colour, [*pixel, alpha])) == becomes
    if colour == 2:
        assert both(png(tmp_path / "a.png", depth, colour, pixel)) == expected
        assert both(png(tmp_path / "a.png", depth, colour, pixel, transparent=pixel)) == [255] * 4
        assert both(png(tmp_path / "a.png", depth, colour, pixel, transparent=[0, 0, 0])) == expected


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "value", "value_range", "expected"),
    [
        (np.uint8, 200, None, 200),
        (np.uint16, 257 * 200, None, 200),
        (np.uint16, 200, (0, 255), 200),
        (np.uint16, 4095, (0, 4095), 255),
        (np.uint16, 5000, (0, 4095), 255),  # clipped
        (np.uint16, 3000, (1000, 4095), 165),  # 2000 / 3095 * 255 = 164.8
        (np.int16, -1000, (-1000, 1000), 0),
        (np.int16, 200, (-1000, 1000), 153),
        (np.uint32, 200, (0, 255), 200),
        (np.uint32, 2**32 - 1, (0, 2**32 - 1), 255),
        (np.int32, -7, (-7, 8), 0),
        (np.int32, 200, (0, 255), 200),
        (np.float32, 0.5, (-0.5, 1), 170),
        (np.int8, 64, (-128, 127), 192),
    ],
)
def test_grey_tiff_of_each_type(kind, value, value_range, expected, order, tmp_path):
    path = tiff(tmp_path / "a.tif", square(value, kind), order)
    try:
        with Image.open(path):
            pass
    except OSError:
        pytest.skip(f"Pillow reads no {np.dtype(kind)} of this byte order")
    assert both(path, value_range=value_range) == [expected] * 4


def test_12_bit_tiff_uses_the_range_of_12_bits(tmp_path):
    assert both(tiff(tmp_path / "a.tif", square(4095, np.uint16), bits=12)) == [255] * 4
    assert both(tiff(tmp_path / "a.tif", square(2048, np.uint16), bits=12)) == [128] * 4


@pytest.mark.parametrize(("kind", "value_range"), [(np.uint8, None), (np.uint16, None), (np.uint16, (0, 4095))])
def test_tiff_in_which_white_is_0_is_inverted(kind, value_range, tmp_path):
    top = 4095 if value_range else np.iinfo(kind).max
    assert both(tiff(tmp_path / "a.tif", square(0, kind), photometric=0), value_range=value_range) == [255] * 4
    assert both(tiff(tmp_path / "a.tif", square(top, kind), photometric=0), value_range=value_range) == [0] * 4


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32, np.float32])
def test_a_type_without_a_range_of_its_own_is_an_error_that_says_what_to_set(kind, tmp_path):
    values = square(3, kind)
    values[0, 0] = 100
    path = tiff(tmp_path / "a.tif", values)
    with pytest.raises(ValueError, match=r"a.tif: its pixels .* here from 3 to 100, .* set value_range, such as"):
        decode_or_name(path, SIZE, 1)


def test_value_range_does_not_apply_to_8_bits_and_is_refused_for_16_bit_colour(tmp_path):
    assert both(png(tmp_path / "a.png", 8, 0, [200]), value_range=(0, 4095)) == [200] * 4
    with pytest.raises(ValueError, match=r"a.png: value_range cannot apply, .* 16-bit colour"):
        decode_or_name(png(tmp_path / "a.png", 16, 2, [200, 0, 0]), SIZE, 3, (0, 4095))


def test_pixels_that_are_not_finite_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a.tif cannot be read .*not finite"):
        decode_or_name(tiff(tmp_path / "a.tif", square(np.nan, np.float32)), SIZE, 1, (0, 1))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_is_turned_upright(order, tmp_path):
    values = np.arange(SIZE**2, dtype=np.uint16).reshape(SIZE, SIZE) * 1000
    path = tiff(tmp_path / "a.tif", values, order)
    with Image.open(path) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6  # a quarter turn
        picture.save(path, exif=exif)
    assert np.abs(decode(path, SIZE, 1)[0].astype(int) - np.rot90(values, -1) / 257).max() <= 0.5


# Dark images


def folder(root, depth, colour, pixels, **options):
    for i, pixel in enumerate(pixels):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        png(path, depth, colour, [pixel] * (3 if colour == 2 else 1))
    data = ImageFolder(root, image_size=SIZE, val_fraction=0, test_fraction=0, batch_size=2, **options)
    data.setup()
    return data


def test_12_bit_data_in_16_bit_files_is_said_with_the_range_to_set(tmp_path):
    with pytest.warns(UserWarning, match=r"highest pixel value is 4000 of 65535. Set value_range to \[0, 4095\]"):
        folder(tmp_path, 16, 0, [10, 4000] * 20)


def test_12_bit_data_in_16_bit_colour_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"is 15 of 255. Rescale the files"):
        folder(tmp_path, 16, 2, [10, 4000] * 20)


@pytest.mark.parametrize(
    ("depth", "colour", "highest", "options"),
    [(16, 0, 20000, {}), (16, 2, 20000, {}), (8, 0, 4, {}), (16, 0, 4000, {"value_range": (0, 4095)})],
)
def test_other_images_are_not_called_dark(depth, colour, highest, options, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder(tmp_path, depth, colour, [1, highest, highest, highest] * 10, **options)


@pytest.mark.parametrize("every", [2, 8, 40])
def test_12_bit_data_among_8_bit_files_is_said_with_its_number(every, tmp_path):
    for i in range(160):
        path = tmp_path / f"{i:03}.png"
        deep = i % every == every - 1
        png(path, 16 if deep else 8, 0, [4000 if deep else 200])
    deep = min(16, 160 // every)
    with pytest.warns(UserWarning, match=rf"of {deep} sampled images with more than 8 bits, {deep} are"):
        warn_of_dark_images(sorted(tmp_path.iterdir()))


def test_a_few_bright_images_do_not_hide_12_bit_data(tmp_path):
    folder(tmp_path, 16, 0, [60000] * 2 + [4000] * 8, value_range=(0, 4095))
    with pytest.warns(UserWarning, match=r"of 10 .*, 8 are, .* 4000 of 65535. Set value_range to \[0, 4095\], which"):
        warn_of_dark_images(sorted(tmp_path.glob("*/*")))


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_a_folder_is_read_with_its_value_range(memory_limit, tmp_path):
    data = folder(tmp_path, 16, 0, [1023, 0, 1023, 0], value_range=(0, 1023), memory_limit=memory_limit)
    assert data.splits.train.images(torch.arange(4))[:, 0, 0, 0].tolist() == [255, 255, 0, 0]


def first_image(data):
    data.setup()
    return data.splits.train.images(torch.tensor([0]))


def test_a_picture_above_max_pixels_is_refused_by_its_size_and_read_with_a_larger_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow refuses 21 pixels
    path = tmp_path / "cat" / "large.png"
    path.parent.mkdir()
    Image.new("L", (20, 10), 77).save(path)
    assert (decode(path, SIZE, 1) == 77).all()
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(ValueError, match=r"large.png: it has 20 × 10 pixels, and max_pixels is 199: .* at least 200"):
        decode_or_name(path, SIZE, 1, max_pixels=199)
    for limit in (2_000_000_000, 0):  # in memory, and decoded when needed
        data = ImageFolder(tmp_path, SIZE, 1, max_pixels=199, memory_limit=limit)
        with pytest.raises(ValueError, match="max_pixels is 199"):
            first_image(data)
    assert (first_image(ImageFolder(tmp_path, SIZE, 1, max_pixels=200)) == 77).all()
