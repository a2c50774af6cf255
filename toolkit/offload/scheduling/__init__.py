"""Order the device's layers so that uploads hide behind computation."""
