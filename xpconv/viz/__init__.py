"""Pictures of filters, training runs and predictions, written as PNG files."""

from xpconv.viz._curves import save_comparison, save_curves
from xpconv.viz._filters import save_filters, visualize_grid
from xpconv.viz._predictions import save_confusion_matrix, save_mistakes

__all__ = ["save_comparison", "save_confusion_matrix", "save_curves", "save_filters", "save_mistakes", "visualize_grid"]
