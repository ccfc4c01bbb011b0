"""The receiver service: it reconstructs the scans that it is handed over HTTPS, and tells who follows how it goes.

The main thread carries out runs, one after the other; a second one serves HTTP. They share the `Desk` (which run there
is, and its state) and the `Roster` (workers on other machines), which are locked.
"""
