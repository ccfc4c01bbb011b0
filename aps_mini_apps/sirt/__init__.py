"""Reconstruction: sliding window, projectors, the SIRT update, the rotation axis, output files, the program."""
