"""Draws a scene with Pillow: many colours, backgrounds, sizes and flaws, so that no single rendering is learned."""

from __future__ import annotations

import colorsys
import io

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.demo_vlm.scenes import Scene, Thing

Range = tuple[float, float]
HSV: dict[str, tuple[Range, Range, Range]] = {
    "red": ((-8, 7), (0.8, 1), (0.7, 1)),
    "orange": ((24, 33), (0.85, 1), (0.9, 1)),
    "yellow": ((51, 60), (0.75, 1), (0.9, 1)),
    "green": ((95, 145), (0.55, 1), (0.45, 0.85)),
    "blue": ((208, 240), (0.65, 1), (0.6, 1)),
    "purple": ((270, 288), (0.55, 1), (0.45, 0.85)),
    "pink": ((318, 338), (0.35, 0.6), (0.95, 1)),
    "black": ((0, 360), (0, 0.2), (0, 0.1)),
    "white": ((0, 360), (0, 0.04), (0.96, 1)),
}
"""Hue in degrees, saturation, value."""
BACKGROUNDS: dict[str, Range] = {"dark": (0.0, 0.28), "mid": (0.42, 0.6), "light": (0.8, 1.0)}
"""Values of colours that are nearly grey."""


def drawn(scene: Scene, draw: Generator, *, clean: bool = False) -> Image.Image:
    """The scene in RGB, `scene.width` x `scene.height` pixels; a `clean` one has no flaws."""
    fine = 2 if clean or (min(scene.width, scene.height) <= 200 and draw.random() < 0.8) else 1
    picture = _background(scene, draw, fine)
    if scene.text:
        picture = _written(picture, scene, draw)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        _draw_thing(pen, thing, scene, draw, fine)
    picture = picture.reduce(fine) if fine > 1 else picture
    return picture if clean else _flawed(picture, draw)


def _colour(name: str, draw: Generator) -> tuple[int, int, int]:
    hue, saturation, value = (draw.uniform(*span) for span in HSV[name])
    return _rgb(hue, saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(scene: Scene, draw: Generator, fine: int) -> Image.Image:
    """One colour, or one that changes into another; never near that of black or white things."""
    colours = {thing.colour for thing in scene.things} | {scene.colour}
    kinds = [kind for kind in BACKGROUNDS if not (kind == "dark" and "black" in colours)]
    kinds = [kind for kind in kinds if not (kind == "light" and "white" in colours)]
    values = BACKGROUNDS[str(draw.choice(kinds))]
    hue, saturation = draw.uniform(0, 360), draw.uniform(0, 0.18)
    first, second = (_rgb(hue, saturation, draw.uniform(*values)) for _ in range(2))
    size = (scene.width * fine, scene.height * fine)
    plain = Image.new("RGB", size, first)
    if draw.random() < 0.5:
        return plain
    slope = Image.linear_gradient("L").rotate(90 * int(draw.integers(4))).resize(size)
    return Image.composite(Image.new("RGB", size, second), plain, slope)


def _outline(thing: Thing, draw: Generator) -> list[tuple[float, float]]:
    """Corners of a shape of radius 1 around 0, turned as far as its name allows."""
    turn = np.radians(draw.uniform(-12, 12))
    if thing.shape == "square":
        angles, radii = np.arange(4) * np.pi / 2 + np.pi / 4, np.ones(4)
    elif thing.shape == "diamond":
        angles, radii = np.arange(4) * np.pi / 2, np.array([draw.uniform(0.7, 0.9), 1.0] * 2)
    elif thing.shape == "triangle":
        angles, radii = np.arange(3) * 2 * np.pi / 3 - np.pi / 2, np.ones(3)
        turn = draw.uniform(0, 2 * np.pi) if draw.random() < 0.5 else turn
    elif thing.shape == "star":
        angles, radii = np.arange(10) * np.pi / 5 - np.pi / 2, np.array([1.0, draw.uniform(0.38, 0.5)] * 5)
    elif thing.shape == "cross":
        wide = draw.uniform(0.24, 0.36)
        arm = np.array([(1, -wide), (1, wide), (wide, wide)])
        corners = np.concatenate([_turned(arm, quarters) for quarters in range(4)])
        angles, radii = np.arctan2(corners[:, 1], corners[:, 0]), np.hypot(corners[:, 0], corners[:, 1])
    else:  # heart
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        angles, radii = np.arctan2(y, x), np.hypot(x, y) / 17
    return list(zip(radii * np.cos(angles + turn), radii * np.sin(angles + turn), strict=True))


def _turned(points: np.ndarray, quarters: int) -> np.ndarray:
    turn = quarters * np.pi / 2
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, scene: Scene, draw: Generator, fine: int) -> None:
    unit = min(scene.width, scene.height) * fine
    x, y = scene.width * fine / 2 + thing.x * unit, scene.height * fine / 2 + thing.y * unit
    radius, fill = thing.radius * unit, _colour(thing.colour, draw)
    line = max(1, round(0.06 * radius)) if draw.random() < 0.2 else 0
    edge = tuple(channel // 2 for channel in fill)
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "ring":
        pen.ellipse(box, outline=fill, width=max(2, round(radius * draw.uniform(0.28, 0.42))))
    elif thing.shape == "circle":
        pen.ellipse(box, fill=fill, outline=edge if line else None, width=line)
    else:
        corners = [(x + radius * across, y + radius * down) for across, down in _outline(thing, draw)]
        pen.polygon(corners, fill=fill, outline=edge if line else None, width=line or 1)


def _written(picture: Image.Image, scene: Scene, draw: Generator) -> Image.Image:
    """The text in the middle half of the picture, turned a little."""
    width, height = picture.size
    stroke = int(draw.random() < 0.4)
    wanted = draw.uniform(0.5, 0.85) * width if len(scene.text) > 2 else draw.uniform(0.3, 0.6) * width
    font = ImageFont.load_default(100)
    size = min(100 * wanted / font.getlength(scene.text), draw.uniform(0.45, 0.6) * height)
    font = ImageFont.load_default(size)
    mask = Image.new("L", picture.size)
    at = (width * draw.uniform(0.47, 0.53), height * draw.uniform(0.4, 0.6))
    stroke_width = round(stroke * 0.03 * size)
    ImageDraw.Draw(mask).text(at, scene.text, fill=255, font=font, anchor="mm", stroke_width=stroke_width)
    mask = mask.rotate(draw.uniform(-7, 7), Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", picture.size, _colour(scene.colour, draw)), picture, mask)


def _flawed(picture: Image.Image, draw: Generator) -> Image.Image:
    """Some are a little out of focus, some have noise, some went through JPEG."""
    unit = min(picture.size)
    if draw.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.002, 0.006) * unit))
    if draw.random() < 0.35:
        values = np.asarray(picture, np.int16)
        noise = draw.standard_normal((*values.shape[:2], 1), np.float32) * draw.uniform(2, 14)
        picture = Image.fromarray(np.clip(values + noise.astype(np.int16), 0, 255).astype(np.uint8))
    if draw.random() < 0.15:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=int(draw.integers(50, 95)))
        picture = Image.open(data).convert("RGB")
    return picture
