"""Tell from the usual depth whether point maps may be in another unit than millimetres."""

from __future__ import annotations

CLOSEST_USUAL_MM = 200.0  # nearer than that 3-D cameras hardly measure
FARTHEST_USUAL_MM = 10000.0  # farther than that neither
LARGER_UNITS_MM = {"centimetres": 10.0, "inches": 25.4}
SMALLER_UNITS_MM = {"tenths of a millimetre": 0.1, "micrometres": 0.001}


def unit_remark(median_mm: float) -> str | None:
    """Return what other unit depths with this median may be in, None where mm are likely.

    median_mm  taken as millimetres, of all captures that come from one source
    """
    if CLOSEST_USUAL_MM <= median_mm <= FARTHEST_USUAL_MM:
        return None
    near = median_mm < CLOSEST_USUAL_MM
    others = " or ".join(
        f"{unit} ({median_mm * factor:.0f} mm)"
        for unit, factor in (LARGER_UNITS_MM if near else SMALLER_UNITS_MM).items()
        if CLOSEST_USUAL_MM <= median_mm * factor <= FARTHEST_USUAL_MM
    )
    return (
        f"the median Z is {median_mm:.4g}, {'nearer' if near else 'farther'} than 3-D cameras"
        f" usually measure in mm: is it in {others or 'another unit'}?"
    )
