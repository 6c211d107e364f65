"""Shade a crate of tires: black rubber, wood, grey steel and chrome.

They are lit by the projector beside the lens and a little ambient light.
"""

from __future__ import annotations

import math

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.noise import cloud_noise, hash_noise, surrounding_depth
from depthdist.synthetic.tires.crate import Session
from depthdist.synthetic.tires.raycast import (
    CHROME,
    FLOOR,
    NONE,
    ROOM,
    TIRE_HIT,
    WOOD,
    CrateHits,
    CrateScene,
    projector_light,
)
from depthdist.synthetic.tires.scene import TireAppearance

# The lettering on the sidewalls: a digit for each row of a glyph, its bits are the columns.
GLYPHS = {
    "D": "65556",
    "E": "74647",
    "P": "65644",
    "T": "72222",
    "H": "55755",
    "I": "72227",
    "S": "34216",
    "R": "65655",
    "A": "25755",
    "L": "44447",
    "U": "55557",
    "B": "65656",
    "2": "61247",
    "0": "25552",
    "5": "74616",
    "/": "11244",
    "1": "26227",
    "6": "34652",
    " ": "00000",
}
# The crate's walls and tires return about half of the projector's light.
SCATTERED = 0.5
# Rubber reflects 4 % of what surrounds it at its rough surface (Fresnel, index of refraction 1.5),
# about as much as it returns diffusely.
ROUGH_MIRROR = 0.04
WORDS = "DEPTHDIST   205/55 R16   TUBELESS   RADIAL    "


def _lettering() -> np.ndarray:
    """Return WORDS as a bitmap (5, columns) uint8, four columns a letter."""
    bitmap = np.zeros((5, 4 * len(WORDS)), np.uint8)
    for row in range(5):
        for column in range(bitmap.shape[1]):
            glyph_row = int(GLYPHS[WORDS[column // 4]][row])
            bitmap[row, column] = glyph_row * 2 >> (3 - column % 4) & 1
    return bitmap


LETTERS = _lettering()


@kernel
def _smooth_step(value, low, high):
    """Return 0 below `low`, 1 above `high`, and a smooth transition between them."""
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


@kernel
def _rubber_color(scene, appearance, letters, k, openness, painted, x, y, z):
    """Return color (r, g, b), gloss and the share of reflected surroundings of a point of tire `k`.

    openness  its share of the surroundings' light
    painted   whether a groove is painted on there
    """
    m, tire = scene.to_tire[k], scene.tires[k]
    px = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
    py = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
    axial = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    r, angle = math.sqrt(px * px + py * py), math.atan2(py, px)
    arc = angle * tire.radius_mm
    dark, gloss = appearance.dark[k], appearance.gloss[k]
    tread = r > tire.radius_mm - 16.0
    dirt = (
        appearance.dust[k]
        * cloud_noise(arc / 60.0, axial / 35.0 + r / 40.0, k)
        * (0.35 + 0.65 * cloud_noise(arc / 9.0, axial / 7.0, k + 50))
    )
    aside = (angle - appearance.label_angle[k] + math.pi) % (2 * math.pi) - math.pi
    if tread:
        gloss *= 0.6
        grain = 0.3 + 0.7 * cloud_noise(arc / 14.0, axial / 14.0, k + 20)
        dirt += appearance.settled[k] * (1.0 - openness) * grain
        patch = _smooth_step(cloud_noise(arc / 70.0, axial / 45.0, k + 90), 0.45, 0.65)
        dirt += appearance.dusty[k] * patch * openness * (0.4 + 0.6 * grain)
        wet = appearance.wet[k] * _smooth_step(
            cloud_noise(arc / 80.0, axial / 60.0, k + 70), 0.4, 0.5
        )
        dirt *= 1.0 - 0.7 * wet
        dark *= 1.0 - 0.4 * wet
        gloss += (0.95 - gloss) * wet
        across, along, wide, high = aside * tire.radius_mm, axial, 46.0, 30.0
    else:
        side = 1.0 if axial > 0 else -1.0
        across, along, wide, high = aside * tire.middle_mm, r - tire.middle_mm - 2.0, 42.0, 24.0
        col = math.floor(-side * arc / 3.6) % letters.shape[1]
        row = math.floor((tire.middle_mm + 20.0 - r) / 4.6)
        rise, bulge = r - tire.middle_mm, max(abs(axial) - tire.half_mm + tire.side_mm, 0.0)
        outside = rise * rise + bulge * bulge > (tire.side_mm - 3.0) ** 2  # not the inner surface
        if outside and 0 <= row < 5 and letters[row, int(col)]:
            dark, gloss = dark * 1.9, min(gloss + 0.25, 1.0)
        dark *= 1.0 + 0.22 * math.sin(r * 0.9) * (1.0 if abs(r - tire.middle_mm - 34) < 9 else 0.15)
    if (
        appearance.label[k] == (0 if tread else 1)
        and openness > 0.9  # a label spans no groove
        and abs(across) < wide
        and abs(along) < high
        and (tread or axial > 0)
    ):
        bars = (
            abs(along) < high * 0.55
            and abs(across) < wide * 0.8
            and hash_noise(math.floor(across / 2.6), 3, k) > 0.5
        )
        lines = (
            along > high * 0.66
            and hash_noise(math.floor(across / 4.0), 9, k) > 0.35
            and along < high * 0.82
        )
        ink = 0.07 if bars or lines else 0.72
        return ink, ink, ink * 0.96, 0.15, ROUGH_MIRROR
    dirt = min(dirt, 1.0)
    tint = appearance.paint[k] if painted else 1.0
    gloss *= (1.0 - dirt) * (appearance.paint_gloss[k] if painted else 1.0)
    return (
        tint * (dark + dirt * (0.15 - dark)),
        tint * (dark + dirt * (0.125 - dark)),
        tint * (dark + dirt * (0.098 - dark)),
        min(gloss, 1.0),
        tint * (1.0 - dirt) * ROUGH_MIRROR,
    )


@kernel
def _static_color(scene, kind, item, grey, x, y, z, nx, ny, nz):
    """Return color (r, g, b) and gloss of a point of the crate, the room or the gripper."""
    m = scene.to_crate
    cx = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
    cy = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
    cz = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    if kind == CHROME:
        back = 2.0 * (nx * x + ny * y + nz * z) / math.sqrt(x * x + y * y + z * z)
        mirror = ny * back * -1.0
        shine = (
            0.03
            + 0.3 * (mirror > -0.1) * cloud_noise(nx * 9.0, mirror * 3.0, 5) ** 2
            + 0.2 * nz * nz * nz * nz
        )
        return shine, shine, shine * 1.03, 1.0
    if kind == WOOD:
        box = scene.boxes[item]
        long = box[3] - box[0] > box[5] - box[2]
        along, across = (cx, cz + cy) if long else (cz + cy * 0.3, cx + cy)
        grain = (
            cloud_noise(along / 160.0, across / 5.0, item) * 0.5
            + cloud_noise(along / 50.0, across / 2.0, item + 7) * 0.5
        )
        knot = cloud_noise(along / 30.0, across / 22.0, item + 3)
        tone = (
            (0.55 + 0.5 * grain)
            * (0.9 if knot < 0.86 else 0.5)
            * (0.8 + 0.3 * hash_noise(item, 1, 1))
        )
        return 0.60 * tone, 0.41 * tone, 0.13 * tone, 0.08
    if kind == ROOM:
        tone = 0.13 + 0.05 * cloud_noise(cx / 300.0, cz / 240.0 + cy / 300.0, 11)
        if item < 2:  # the far wall has panels
            tone *= 0.55 if (cx / 620.0) % 1.0 < 0.03 else 1.0
            tone *= 1.35 if cz % 900.0 < 330.0 else 1.0
        return tone, tone, tone * 1.04, 0.03
    if kind == FLOOR:
        tone = grey * (
            0.55 + 0.5 * cloud_noise(cx / 90.0, cy / 90.0, 2) * cloud_noise(cx / 21.0, cy / 26.0, 4)
        )
        return tone, tone * 0.97, tone * 0.92, 0.1
    flat = cx + cy
    tone = grey * (
        0.86
        + 0.22 * cloud_noise(flat / 240.0, cz / 140.0, 8)
        - 0.2 * (cloud_noise(flat / 60.0, cz / 5.0, 6) > 0.86)
    )
    if (flat / 310.0) % 1.0 < 0.012:
        tone *= 0.6  # seams
    scuff = cloud_noise(flat / 45.0, cz / 60.0, 9)
    tone *= 0.62 if scuff > 0.8 and cz < 420 else 1.0
    return tone, tone, tone * 1.02, 0.22


@kernel
def _shade(scene, hits, appearance, letters, grey, ambient, rays, surroundings, color, echo):
    fx, fy, px, py = rays
    height, width = hits.z.shape
    lx, ly, lz = scene.projector
    for v in range(height):
        for u in range(width):
            kind, item, z = hits.kind[v, u], hits.item[v, u], hits.z[v, u]
            if kind == NONE:
                continue
            opening = hits.openness[v, u]
            x, y = (u + 0.5 - px) / fx * z, (v + 0.5 - py) / fy * z
            nx, ny, nz = hits.normal[v, u, 0], hits.normal[v, u, 1], hits.normal[v, u, 2]
            if kind == TIRE_HIT:
                r, g, b, gloss, mirror = _rubber_color(
                    scene, appearance, letters, item, opening, hits.painted[v, u] > 0, x, y, z
                )
            else:
                r, g, b, gloss = _static_color(scene, kind, item, grey, x, y, z, nx, ny, nz)
                mirror = 0.0
            tx, ty, tz = lx - x, ly - y, lz - z
            far, eye = math.sqrt(tx * tx + ty * ty + tz * tz), math.sqrt(x * x + y * y + z * z)
            tx, ty, tz = tx / far, ty / far, tz / far
            facing = max(nx * tx + ny * ty + nz * tz, 0.0)
            hx, hy, hz = tx - x / eye, ty - y / eye, tz - z / eye
            half = max((nx * hx + ny * hy + nz * hz) / math.sqrt(hx * hx + hy * hy + hz * hz), 0.0)
            graze = 1.0 + (nx * x + ny * y + nz * z) / eye
            rim = graze * graze * graze * graze
            half = half * half
            half = half * half
            wide = half * half * half  # the power of 12
            sharp = wide * wide
            sharp = sharp * sharp * sharp * sharp  # and the power of 96
            shine = (0.006 + 0.02 * gloss) * wide + 0.3 * gloss * gloss * sharp + rim * 0.04
            arrives = hits.lit[v, u] * projector_light(x, y, z, lx) * (1450.0 / far) ** 2
            arrives = min(arrives, 1.3 if kind == CHROME else 5.0)
            open_sky = math.exp(-max(z - surroundings[v, u], 0.0) / 55.0) * opening
            up = scene.to_crate[2, 0] * nx + scene.to_crate[2, 1] * ny + scene.to_crate[2, 2] * nz
            room = ambient * open_sky * (0.62 + 0.38 * up)
            sheen = room * (0.05 + 0.25 * gloss) * max(up, 0.0) ** 6 + room * rim * 0.12
            # light that the crate scatters back
            bounce = (
                SCATTERED * min((1450.0 / far) ** 2, 4.0) * projector_light(x, y, z, lx) * open_sky
            )
            sheen += mirror * (room + bounce)
            light = arrives * facing + bounce
            spec = arrives * shine * (1.0 if facing > 0.0 else 0.0) + sheen
            color[v, u, 0] = r * (light + room * 0.94) + spec
            color[v, u, 1] = g * (light + room) + spec
            color[v, u, 2] = b * (light + room * 1.1) + spec
            echo[v, u] = arrives * (0.333 * (r + g + b) * facing + shine)


def shade_crate(
    scene: CrateScene,
    hits: CrateHits,
    appearance: TireAppearance,
    session: Session,
    k: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return linear color (H, W, 3) float32, about 0 to 1, and the echo (H, W) float32.

    The echo is the projector's light alone that returns, from which the camera measures depth.
    """
    height, width = hits.z.shape
    color = np.zeros((height, width, 3), np.float32)
    echo = np.zeros((height, width), np.float32)
    depth = np.nan_to_num(hits.z, nan=4000.0).astype(np.float32)
    _shade(
        scene,
        hits,
        appearance,
        LETTERS,
        session.grey,
        session.ambient,
        (k[0, 0], k[1, 1], k[0, 2], k[1, 2]),
        surrounding_depth(depth),
        color,
        echo,
    )
    return color, echo
