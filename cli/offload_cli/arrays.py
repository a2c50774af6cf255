"""Read and write named values: the .npz and .json files of `offload run`."""

from offload_runtimes.value_files import read_values as read_arrays
from offload_runtimes.value_files import write_values as write_arrays

__all__ = ["read_arrays", "write_arrays"]
