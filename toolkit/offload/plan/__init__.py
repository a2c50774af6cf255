"""A cut, its schedule and the alternatives it was compared with."""
