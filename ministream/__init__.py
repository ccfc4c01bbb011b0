"""Mini-Stream: live tomography across facilities.

Two floors carry this name and nothing lies between them: `ministream.base` is the ground that everything
stands on (settings, logs, errors; no tomography in it), `ministream.commands` the roof (the command line).
"""
