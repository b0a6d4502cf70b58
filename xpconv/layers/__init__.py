"""Layers as pure functions: ``name_forward(x, ...) -> (out, cache)`` and ``name_backward(dout, cache)``."""

from xpconv.layers.activation import ReluCache, relu_backward, relu_forward
from xpconv.layers.affine import AffineCache, affine_backward, affine_forward
from xpconv.layers.conv import ConvCache, conv_backward, conv_forward
from xpconv.layers.dropout import DropoutCache, dropout_backward, dropout_forward
from xpconv.layers.loss import softmax_loss, svm_loss
from xpconv.layers.norm import (
    BatchNormCache,
    GroupNormCache,
    LayerNormCache,
    RunningStats,
    batchnorm_backward,
    batchnorm_backward_stepwise,
    batchnorm_forward,
    groupnorm_backward,
    groupnorm_forward,
    layernorm_backward,
    layernorm_forward,
)
from xpconv.layers.pool import (
    AvgPoolCache,
    GlobalAvgPoolCache,
    MaxPoolCache,
    avg_pool_backward,
    avg_pool_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool_backward,
    max_pool_forward,
)

__all__ = [
    "AffineCache",
    "AvgPoolCache",
    "BatchNormCache",
    "ConvCache",
    "DropoutCache",
    "GlobalAvgPoolCache",
    "GroupNormCache",
    "LayerNormCache",
    "MaxPoolCache",
    "ReluCache",
    "RunningStats",
    "affine_backward",
    "affine_forward",
    "avg_pool_backward",
    "avg_pool_forward",
    "batchnorm_backward",
    "batchnorm_backward_stepwise",
    "batchnorm_forward",
    "conv_backward",
    "conv_forward",
    "dropout_backward",
    "dropout_forward",
    "global_avg_pool_backward",
    "global_avg_pool_forward",
    "groupnorm_backward",
    "groupnorm_forward",
    "layernorm_backward",
    "layernorm_forward",
    "max_pool_backward",
    "max_pool_forward",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "svm_loss",
]
