"""ConvNets with hand-written forward and backward passes, on any array-API library."""

__version__ = "0.1.0"
