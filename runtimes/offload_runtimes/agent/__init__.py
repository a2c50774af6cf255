"""The target's end of a deployment: the standard library only, Python 3.8 or newer.

These modules are sent as text to a Python on the target and run there; nothing is installed.
"""
