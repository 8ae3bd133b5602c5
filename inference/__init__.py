"""Turns a CT volume into a segmentation: millimetres, voxels and labels, and nothing else."""
