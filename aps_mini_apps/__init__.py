"""The tomography: values, wire formats, links, and the programs `daq`, `dist`, `sirt` and `quality`.

A library first and programs second. Frames go one way, from left to right:
`daq` (a source of frames) -> `dist` (correction, row slabs) -> `sirt` (sliding-window reconstruction).
"""
