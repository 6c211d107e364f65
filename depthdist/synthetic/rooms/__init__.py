"""Rooms with boxes, balls, cylinders and tires, to pretrain on."""
