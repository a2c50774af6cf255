"""Choose which layers the device computes, and compare the plans that follow."""
