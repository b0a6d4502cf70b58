"""Files: models as safetensors, exports to ONNX, parameters to and from PyTorch; written whole or not at all."""

from xpconv.io.model import load_model, save_model

__all__ = ["load_model", "save_model"]
