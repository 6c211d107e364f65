"""Rooms with boxes, ellipsoids, cylinders and tires, to pretrain on."""
