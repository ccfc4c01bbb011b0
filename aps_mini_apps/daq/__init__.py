"""Acquisition: sources of frames (file, phantom, random), the order and pace in which they leave."""
