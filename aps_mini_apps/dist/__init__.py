"""Distribution: correction of frames, stripes, row slabs, and the program that shares them out."""
