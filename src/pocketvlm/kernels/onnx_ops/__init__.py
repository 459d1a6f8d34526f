"""Operators of our own for ONNX Runtime: C++ sources, and the library they become."""
