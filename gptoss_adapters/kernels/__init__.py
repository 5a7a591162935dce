"""The native library: finding it, its structs, and the C++ sources. Nothing of it knows checkpoints."""
