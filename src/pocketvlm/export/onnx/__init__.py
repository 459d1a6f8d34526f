"""The model as ONNX graphs. graph: builder · linear, pieces, quantization: products · vision · decoder · embedding."""

from pocketvlm.errors import MissingExtraError

try:
    import onnx_ir as _onnx_ir
except ImportError:
    raise MissingExtraError("onnx-ir", "onnx") from None

del _onnx_ir
