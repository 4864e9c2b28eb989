"""One segment: an immutable HDF5 file, written in parallel and read without libhdf5."""
