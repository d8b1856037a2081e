from __future__ import annotations

import struct
import zlib

import torch

from kdpipe.stages.artifacts import ImageSpace
from kdpipe.stages.synthesis.picture import encode_png, write_grid
from kdpipe.stages.synthesis.selection import balanced_choice


def choose(labels, count, seed=0):
    logits = torch.nn.functional.one_hot(torch.tensor(labels), 3).float()
    chosen = balanced_choice(logits, count, torch.Generator().manual_seed(seed))
    return chosen, torch.bincount(torch.tensor(labels)[chosen], minlength=3).tolist()


def test_classes_are_equally_many_where_there_are_enough():
    labels = [0] * 50 + [1] * 20 + [2] * 10
    chosen, counts = choose(labels, 30)
    assert counts == [10, 10, 10]
    assert len(set(chosen.tolist())) == 30


def test_the_others_make_up_for_a_class_that_is_short():
    assert choose([0] * 50 + [1] * 20 + [2] * 2, 30)[1] == [14, 14, 2]
    assert choose([0] * 50, 30)[1] == [30, 0, 0]


def test_the_choice_is_random_but_a_function_of_the_generator():
    labels = [0, 1, 2] * 30
    assert choose(labels, 9)[0].tolist() == choose(labels, 9)[0].tolist() != choose(labels, 9, seed=1)[0].tolist()


def decode(data):
    """Read a PNG without filters: (width, height, colour type, rows of bytes)."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(name + body),)
        chunks[name] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert depth == 8
    raw = zlib.decompress(chunks[b"IDAT"])
    line = len(raw) // height
    assert all(raw[y * line] == 0 for y in range(height))
    return width, height, colour, [list(raw[y * line + 1 : (y + 1) * line]) for y in range(height)]


def test_png_of_grey_and_colour():
    grey = torch.tensor([[[0, 1, 2], [3, 4, 255]]], dtype=torch.uint8)
    assert decode(encode_png(grey)) == (3, 2, 0, [[0, 1, 2], [3, 4, 255]])
    colour = torch.tensor([[[1, 4]], [[2, 5]], [[3, 6]]], dtype=torch.uint8)
    assert decode(encode_png(colour)) == (2, 1, 2, [[1, 2, 3, 4, 5, 6]])


def test_a_grid_shows_pixels_as_they_were_before_normalization(tmp_path):
    space = ImageSpace((1, 1, 1), ("a", "b"), (0.5,), (0.25,))
    values = torch.tensor([-9.0, -2.0, 0.0, 2.0, 9.0]).view(5, 1, 1, 1)
    write_grid(tmp_path / "grid.png", values, space, side=1, gap=1)
    width, height, _, rows = decode((tmp_path / "grid.png").read_bytes())
    assert (width, height) == (7, 5)
    assert rows[1] == [255, 0, 255, 0, 255, 128, 255]
    assert rows[3] == [255, 255, 255, 255, 255, 255, 255]
