"""Model files, ONNX files and PyTorch parameters. Every file is written completely or not at all."""

from xpconv.io.model import load_model, save_model

__all__ = ["load_model", "save_model"]
