"""Small nets of every kind of layer, which several test modules train, save and export."""

from xpconv import ConvNet, FullyConnectedNet, Sequential, ThreeLayerConvNet, TwoLayerNet, nn

IMAGE = (3, 6, 8)
NETS = {
    "two": lambda **o: TwoLayerNet(input_dim=144, hidden_dim=7, num_classes=5, **o),
    "deep": lambda **o: FullyConnectedNet([6, 7, 8], input_dim=144, num_classes=5, weight_scale=0.3, **o),
    "deep batchnorm": lambda **o: FullyConnectedNet(
        [6, 7], input_dim=144, num_classes=5, weight_scale=0.3, normalization="batchnorm", **o
    ),
    "deep layernorm dropout": lambda **o: FullyConnectedNet(
        [6, 7], input_dim=144, num_classes=5, weight_scale=0.3, normalization="layernorm", keep_prob=0.7, seed=1, **o
    ),
    "three layers": lambda **o: ThreeLayerConvNet(
        input_dim=IMAGE, num_filters=3, filter_size=3, hidden_dim=7, num_classes=5, weight_scale=0.1, **o
    ),
    "conv batchnorm": lambda **o: ConvNet([3, "pool", 4], input_dim=IMAGE, num_classes=5, **o),
    "conv groupnorm": lambda **o: ConvNet(
        [4, "pool", 6], input_dim=IMAGE, num_classes=5, normalization="groupnorm", **o
    ),
    "conv plain": lambda **o: ConvNet([3, "pool", 4], input_dim=IMAGE, num_classes=5, normalization=None, **o),
    "residual": lambda **o: Sequential(
        [
            nn.Conv(4, padding="same", bias=False),
            [nn.BatchNorm(), nn.Relu()],
            nn.Residual(
                [nn.Conv(5, stride=2, padding=1), nn.BatchNorm(), nn.Residual([nn.Relu(), nn.Conv(5, padding=1)])],
                shortcut=[nn.Conv(5, 1, stride=2, bias=False), nn.BatchNorm()],
            ),
            nn.Relu(),
            nn.GlobalAvgPool(),
            nn.Affine(5),
        ],
        input_shape=IMAGE,
        name="ResidualNet",
        **o,
    ),
    "every layer": lambda **o: Sequential(
        [
            nn.Conv(4, (3, 2), stride=(1, 2), padding=1),
            nn.BatchNorm(),
            nn.GroupNorm(groups=2),
            nn.Relu(),
            nn.AvgPool(2, stride=1),
            nn.MaxPool((2, 1)),
            nn.LayerNorm(),
            nn.Dropout(0.8),
            nn.GlobalAvgPool(),
            nn.Affine(5, bias=False),
        ],
        input_shape=IMAGE,
        loss="svm",
        seed=3,
        **o,
    ),
}
