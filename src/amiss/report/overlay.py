"""Heat maps on one fixed colour scale, for the report and for `amiss predict`."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from amiss.errors import OptionError
from amiss.types import Bool, Float32, Region, UInt8

OPACITY = 0.7  # the defect itself stays visible under the hottest colour
"""How much of the original the strongest heat hides."""

# The "inferno" map (CC0): lightness rises evenly from black to pale yellow, so equal steps of the
# anomaly map look equally large, also in print and to colour-blind eyes. 256 RGB triples, base85;
# stored because importing matplotlib for it would add 0.3 s to every prediction.
_INFERNO = np.frombuffer(
    base64.b85decode(
        b"000C500jX71_1#G0s#sF0t^BI4g&%Z1OpNT0~7@W7X}0w2L&4l1sw?n9|{K|3kM_&2qp~(DGmuM5D6_23NR8"
        b"1G879m6$>{O3pp4JJQ)l=8w^1l3_~6aMIQ`EAq+|*3``^pPbLgeC<{|53sox%S1k)!FA7^R3S2S@UNj0{HVI"
        b")k31T@3V>=0CJqcw#31&bFXF>{SL<(p{3Ta0RYDo)fN(^gE3~NmdY)=hrQ4VZU4sBEqZB-9#R}gMl5N=u#Zd"
        b"?*>T@r3z6K-J>ZekQ}WEE~@6>eu1ZfO>7Y8P&77;bGCZf_ZGaT#uM8g6tNZgm@OcN}ea9Bq0XZG0VVeI9Lp9"
        b"&CUgY=R(cgdl5$A!~;rYltFhiXv)^BWaBzX^$jnkR@o6C1{f-XO$*rmnUYJCuW)`Wt%Bvohf9WDr2B3W1=f!"
        b"qby;iEMTTBV5lx%sV-itFJ7%MU9K=(urXV)GFr1TTC_7+wlr9`HCMScR=PG-yf;+6I8(nlQouS<!8%aGJ5R("
        b"sPR2b=$39HRKTFC$O3Oh>%tA=cLr2d<M$kn?(ndtnM?=&|Le)w^*GoUxOg`C7J=#t@+fX~*Q99mIINwt@;8i"
        b"x^RyE>RG~-z_<XSQ1TrlQcFXvt^=wL1BVJqrmD(hq^>t-nIXD01wCGKh@?`$LQZXxh*An|b@@pB#WbR6?`8}"
        b"oP>^m!Qddl&V67507<_J9-jf)e+H5cq`;_=gVoi46IR3;B!+`Hl(tkO=yc2l|u;`<4d#mj?Tp2K$=^`<(~;p"
        b"9lP*2>hc7{G|%~rVRY34g9JP{HziDt`hvP6#TLl{InSRwi^4m9s9Z;`@A9hz9ag;Ci=oC`ot>w#x42BFZszb"
        b"`O7u<%{TbZI``2%_tQZ3)kF5zM)lcA_1jGJ-B0x2Q}p3h^W$3c<z4dTVe;r@^6F{v>}~Pwaq;hU@$q@`@_q9"
        b"3g7fu;^Y)7L_>T4YlJ@$R`1_jq{GIy!q5S`("
    ),
    dtype=np.uint8,
).reshape(256, 3)


def heat_map(anomaly_map: Float32, low: float, high: float) -> UInt8:
    """Colour an anomaly map on the fixed scale `low` (black) to `high` (pale yellow).

    `anomaly_map` (H, W) float, any range; values outside [low, high] take the colour of the nearer
    end, NaN (pixels outside the region of interest) that of `low`. Returns (H, W, 3) uint8.

    Raises OptionError if the map is not two-dimensional or `low` is not below `high`.
    """
    index = np.rint(_level(anomaly_map, low, high) * 255.0).astype(np.uint8)  # (H, W)
    colours: UInt8 = _INFERNO[index]  # (H, W, 3)
    return colours


def opacity(level: Float32) -> Float32:
    """The share of heat in a blend for `level` (...) in [0, 1]; (...) in [0, OPACITY].

    A smooth step: what is clearly normal keeps its own look, and the change is fastest around the
    middle of the scale, where the pixel threshold lies.
    """
    share: Float32 = OPACITY * level * level * (3.0 - 2.0 * level)
    return share


def overlay(
    image: UInt8,
    anomaly_map: Float32,
    low: float,
    high: float,
    regions: Sequence[Region] = (),
) -> UInt8:
    """Blend the heat of a map into its image and draw the boxes of the predicted regions.

    `image` (H, W, 3) uint8 and `anomaly_map` (H, W) float belong to the same pixels; `regions` are
    in these pixels too and are numbered from 1 in their order when there is more than one. At and
    below `low` the image is untouched; toward `high` the heat covers it. Returns (H, W, 3) uint8,
    a new array.

    Raises OptionError if the shapes differ or `low` is not below `high`.
    """
    if image.ndim != 3 or image.shape != (*anomaly_map.shape, 3):
        raise OptionError(
            f"An image of shape {image.shape} and a map of shape {anomaly_map.shape} do not match.",
            hint="Pass the image as (H, W, 3) and its map, resized to it, as (H, W).",
        )
    level = _level(anomaly_map, low, high)  # (H, W)
    share = opacity(level)[:, :, None]  # (H, W, 1)
    blend = image * (1.0 - share) + heat_map(anomaly_map, low, high) * share
    mixed: UInt8 = np.rint(blend).astype(np.uint8)
    return _with_boxes(mixed, regions) if regions else mixed


def outline(image: UInt8, mask: Bool, colour: tuple[int, int, int], width_px: int = 1) -> UInt8:
    """Draw the border of `mask` (H, W) around its outside, so that what it encloses stays visible.

    `image` (H, W, 3) uint8. A dark ring around the coloured one, both `width_px` wide, keeps it
    readable on any ground. Returns (H, W, 3) uint8, a new array.
    """
    inner = mask
    for _ in range(width_px):
        inner = _grown(inner)
    outer = inner
    for _ in range(width_px):
        outer = _grown(outer)
    drawn = image.copy()
    drawn[outer & ~inner] = drawn[outer & ~inner] // 3
    drawn[inner & ~mask] = colour
    return drawn


def _level(anomaly_map: Float32, low: float, high: float) -> Float32:
    """(H, W) float32 in [0, 1]: where each value lies between `low` and `high`."""
    if anomaly_map.ndim != 2:
        raise OptionError(
            f"A map of shape {anomaly_map.shape} cannot be coloured.", hint="Pass one map (H, W)."
        )
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError(
            f"The colour scale {low:g} to {high:g} is empty.",
            hint="Pass two finite numbers, the lower one first.",
        )
    level = (anomaly_map.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    clipped: Float32 = np.clip(np.nan_to_num(level, nan=0.0), 0.0, 1.0)
    return clipped


def _with_boxes(image: UInt8, regions: Sequence[Region]) -> UInt8:
    """Draw white boxes with a dark casing around the pixels of the regions, not on them."""
    H, W, _ = image.shape
    width = max(1, round(min(H, W) / 220))
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for region in regions:
        top, left, bottom, right = region.box
        # Kept inside the picture: a region at its border would otherwise have an invisible side.
        edge = (
            max(0, left - width - 1),
            max(0, top - width - 1),
            min(W - 1, right + width),
            min(H - 1, bottom + width),
        )
        draw.rectangle(_grow(edge, 1), outline=(0, 0, 0), width=width + 2)
        draw.rectangle(edge, outline=(255, 255, 255), width=width)
    if len(regions) > 1:
        for number, region in enumerate(regions, start=1):
            _draw_number(draw, number, region, (H, W))
    return np.array(canvas)


def _draw_number(
    draw: ImageDraw.ImageDraw, number: int, region: Region, size: tuple[int, int]
) -> None:
    """Write a region's number on a white tag above its box, or inside it at the upper border."""
    H, W = size
    font = ImageFont.load_default(size=max(11, min(H, W) // 26))
    _, _, text_right, text_bottom = draw.textbbox((0, 0), str(number), font=font)
    wide, tall = int(text_right) + 5, int(text_bottom) + 4
    top, left, _, _ = region.box
    y = top - tall if top >= tall else top
    x = max(0, min(left - 2, W - wide))
    draw.rectangle((x, y, x + wide, y + tall), fill=(255, 255, 255), outline=(0, 0, 0))
    draw.text((x + 3, y + 1), str(number), fill=(0, 0, 0), font=font)


def _grow(edge: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = edge
    return left - by, top - by, right + by, bottom + by


def _grown(mask: Bool) -> Bool:
    """(H, W): the mask and all pixels that touch it, corners included."""
    H, W = mask.shape
    padded = np.pad(mask, 1)
    grown = np.zeros_like(mask)
    for row in range(3):
        for column in range(3):
            grown |= padded[row : row + H, column : column + W]
    return grown
