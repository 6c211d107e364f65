"""One tire whose tread faces the lens, 1000 mm away, 0.25 mm a pixel."""

import numpy as np

from depthdist.synthetic.raytracing.tire_shape import draw_tire
from depthdist.synthetic.raytracing.tread_patterns import groove_rows
from depthdist.synthetic.tires.raycast import CrateScene, raycast_crate

K = np.array([[4000.0, 0, 200.0], [0, 4000.0, 8.0], [0, 0, 1]])
SIZE = (16, 400)


def facing_crate(pattern, painted=False):
    """Return a scene of one tire with that pattern and nothing else."""
    tire = draw_tire(np.random.default_rng(1), 300.0, 95.0)
    grooves = groove_rows(tire, pattern, 1)
    tire["last"] = 0 if painted else len(grooves)
    tire["painted_last"] = len(grooves)
    # axis along X, angle 0 towards the lens
    to_tire = np.array([[[0, 0, -1, 1300.0], [0, 1, 0, 0], [1, 0, 0, 0]]], float)
    return CrateScene(
        tires=np.array([tire]),
        to_tire=to_tire,
        grooves=grooves,
        boxes=np.zeros((0, 6)),
        box_kind=np.zeros(0, np.uint8),
        to_crate=np.eye(3, 4),
        cylinders=np.zeros((0, 8)),
        room=np.zeros((0, 4)),
        projector=np.array([130.0, 0, 0]),
    )


def hits_of(crate):
    """Return what each pixel sees of such a scene."""
    return raycast_crate(crate, K, *SIZE)
