"""`offload demo`: real models, an emulated device and link, every scheme tried for real."""
