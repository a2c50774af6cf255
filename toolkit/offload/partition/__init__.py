"""Choose which layers the device computes."""
