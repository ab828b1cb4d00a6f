"""The networks of the papers on distillation for CIFAR's images, with the module names of their usual PyTorch code (RepDistiller, mdistiller), written anew.

`module(name, classes)` gives the one of kd's name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def numbered(module: nn.Module, *convolutions: nn.Conv2d) -> None:
    """`conv1`, `bn1`, `conv2`, ..."""
    for number, layer in enumerate(convolutions, 1):
        setattr(module, f"conv{number}", layer)
        setattr(module, f"bn{number}", nn.BatchNorm2d(layer.out_channels))


class PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        if inputs != outputs:
            self.convShortcut = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        shortcut = self.convShortcut(active) if hasattr(self, "convShortcut") else x
        return shortcut + self.conv2(self.bn2(self.conv1(active)).relu())


class Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, classes: int, depth: int, width: int):
        super().__init__()
        self.conv1, inputs = conv(3, 16, 3), 16
        for stage in range(3):
            outputs, blocks = 16 * width << stage, []
            for block in range((depth - 4) // 6):
                blocks.append(PreActivation(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            setattr(self, f"block{stage + 1}", Stage(blocks))
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean((2, 3)))


class Vgg(nn.Module):
    def __init__(self, classes: int, convs: list[int]):
        super().__init__()
        inputs = 3
        for block, (channels, count) in enumerate(zip((64, 128, 256, 512, 512), convs)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [conv(inputs, channels, 3, bias=True), nn.BatchNorm2d(channels), nn.ReLU()]
                inputs = channels
            setattr(self, f"block{block}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (0, 1, 2, 3) if x.shape[2] == 64 else (0, 1, 2)
        for block in range(5):
            x = getattr(self, f"block{block}")(x).relu()
            x = F.max_pool2d(x, 2) if block in pooled else x
        return self.classifier(x.mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        numbered(self, conv(inputs, channels, 1), conv(channels, channels, 3, stride), conv(channels, 4 * channels, 1))
        changes = stride != 1 or inputs != 4 * channels
        shortcut = [conv(inputs, 4 * channels, 1, stride), nn.BatchNorm2d(4 * channels)] if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + self.shortcut(x)).relu()


class ResNet50(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        numbered(self, conv(3, 64, 3))
        inputs = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            blocks = []
            for block in range(count):
                blocks.append(Bottleneck(inputs, 64 << stage, 2 if stage and not block else 1))
                inputs = 256 << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


def conv_norm_relu(*arguments: int) -> list[nn.Module]:
    layer = conv(*arguments)
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden, self.adds = inputs * expansion, stride == 1 and inputs == outputs
        layers = conv_norm_relu(inputs, hidden, 1) + conv_norm_relu(hidden, hidden, 3, stride, hidden) + conv_norm_relu(hidden, outputs, 1)
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        inputs, stages = 16, []
        self.conv1 = nn.Sequential(*conv_norm_relu(3, inputs, 3, 2))
        table = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        for expansion, channels, count, stride in table:
            blocks = []
            for block in range(count):
                blocks.append(Inverted(inputs, channels // 2, 1 if block else stride, expansion))
                inputs = channels // 2
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(stages)
        self.conv2 = nn.Sequential(*conv_norm_relu(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(self.conv2(x).mean((2, 3)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    return F.channel_shuffle(x, groups)


class GroupedBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, halves: bool):
        super().__init__()
        own = outputs - inputs if halves else outputs
        self.groups = 1 if inputs == 24 else 3
        middle, stride = own // 4, 2 if halves else 1
        numbered(self, conv(inputs, middle, 1, 1, self.groups), conv(middle, middle, 3, stride, middle), conv(middle, own, 1, 1, 3))
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(self.bn1(self.conv1(x)).relu(), self.groups)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if self.halves else y + x).relu()


class SplitBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        numbered(self, conv(half, half, 1), conv(half, half, 3, 1, half), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = self.bn2(self.conv2(self.bn1(self.conv1(right)).relu()))
        return shuffled(torch.cat([left, self.bn3(self.conv3(y)).relu()], 1), 2)


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        numbered(
            self, conv(inputs, inputs, 3, 2, inputs), conv(inputs, half, 1), conv(inputs, half, 1), conv(half, half, 3, 2, half), conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x)))).relu()
        right = self.bn4(self.conv4(self.bn3(self.conv3(x)).relu()))
        return shuffled(torch.cat([left, self.bn5(self.conv5(right)).relu()], 1), 2)


class ShuffleNet(nn.Module):
    def __init__(self, classes: int, second: bool):
        super().__init__()
        self.second, inputs = second, 24
        numbered(self, conv(3, inputs, 1))
        for stage, (channels, count) in enumerate(zip((116, 232, 464) if second else (240, 480, 960), (4, 8, 4)), 1):
            if second:
                blocks = [DownBlock(inputs, channels)] + [SplitBlock(channels) for _ in range(count - 1)]
            else:
                blocks = [GroupedBlock(channels if block else inputs, channels, block == 0) for block in range(count)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = channels
        if second:
            self.conv2, self.bn2, inputs = conv(inputs, 1024, 1), nn.BatchNorm2d(1024), 1024
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        x = self.bn2(self.conv2(x)).relu() if self.second else x
        return self.linear(x.mean((2, 3)))


MODULES = {
    "wrn-16-2": lambda classes: WideResNet(classes, 16, 2),
    "wrn-40-1": lambda classes: WideResNet(classes, 40, 1),
    "wrn-40-2": lambda classes: WideResNet(classes, 40, 2),
    "vgg8": lambda classes: Vgg(classes, [1, 1, 1, 1, 1]),
    "vgg11": lambda classes: Vgg(classes, [1, 1, 2, 2, 2]),
    "vgg13": lambda classes: Vgg(classes, [2, 2, 2, 2, 2]),
    "vgg16": lambda classes: Vgg(classes, [2, 2, 3, 3, 3]),
    "vgg19": lambda classes: Vgg(classes, [2, 2, 4, 4, 4]),
    "resnet50-cifar": ResNet50,
    "mobilenetv2-cifar": MobileNetV2,
    "shufflenetv1": lambda classes: ShuffleNet(classes, False),
    "shufflenetv2": lambda classes: ShuffleNet(classes, True),
}
