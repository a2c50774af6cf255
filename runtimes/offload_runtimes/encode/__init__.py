"""Measure encodings: sizes and seconds of every tensor, effects on the outputs, the choice."""
