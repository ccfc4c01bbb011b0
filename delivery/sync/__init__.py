"""Mirrors: a server offers what is new in a folder, brokers fetch it on a timer."""
