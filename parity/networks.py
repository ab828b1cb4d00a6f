"""The tutorial's networks, with the tutorial's module names, written anew.

Source: "Knowledge Distillation Tutorial", https://pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html
(DeepNN and LightNN, and their variants that also return a hidden representation).
"""

import torch.nn.functional as F
from torch import Tensor, nn


def conv_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


def head(inputs: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
    )


class Network(nn.Module):
    features: nn.Sequential
    classifier: nn.Sequential

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the feature map in front of the classifier."""
        feature_map = self.features(images)
        return self.classifier(feature_map.flatten(1)), feature_map


class Teacher(Network):
    def __init__(self, classes: int = 10, dropout: float = 0.1):
        super().__init__()
        self.features = nn.Sequential(
            *conv_relu(3, 128), *conv_relu(128, 64), nn.MaxPool2d(2, 2),
            *conv_relu(64, 64), *conv_relu(64, 32), nn.MaxPool2d(2, 2),
        )
        self.classifier = head(2048, 512, classes, dropout)


class Student(Network):
    def __init__(self, classes: int = 10, dropout: float = 0.1):
        super().__init__()
        self.features = nn.Sequential(
            *conv_relu(3, 16), nn.MaxPool2d(2, 2), *conv_relu(16, 16), nn.MaxPool2d(2, 2)
        )
        self.classifier = head(1024, 256, classes, dropout)


class Block(nn.Module):
    """Two convolutions; where the shape changes the shortcut is option A, or with `projection` option B."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2
        if projection and (stride != 1 or inputs != outputs):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def sum(self, x: Tensor) -> Tensor:
        """The block's output before its ReLU."""
        shortcut = x
        if hasattr(self, "downsample"):
            shortcut = self.downsample(x)
        elif self.padding:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x)) + shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.sum(x))


class ResNet(nn.Module):
    """He et al. (2016), section 4.2; `blocks` in each of three stages. The last layer is `linear` with option-A shortcuts and
    `fc` with those of option B, as in the projects that have these networks."""

    def __init__(
        self, blocks: int, classes: int = 10, channels: tuple[int, ...] = (16, 16, 32, 64), projection: bool = False
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])

        def stage(index: int, stride: int) -> nn.Sequential:
            inputs, outputs = channels[index - 1 : index + 1]
            rest = (Block(outputs, outputs, 1, projection) for _ in range(blocks - 1))
            return nn.Sequential(Block(inputs, outputs, stride, projection), *rest)

        self.layer1, self.layer2, self.layer3 = stage(1, 1), stage(2, 2), stage(3, 2)
        setattr(self, "fc" if projection else "linear", nn.Linear(channels[3], classes))

    def logits(self, pool: Tensor) -> Tensor:
        return (self.fc if hasattr(self, "fc") else self.linear)(pool)

    def places(self, images: Tensor) -> dict[str, Tensor]:
        """The values at every feature place, and the logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        places = {"stem": x}
        for number in (1, 2, 3):
            stage = getattr(self, f"layer{number}")
            before = stage[-1].sum(stage[:-1](x))
            x = F.relu(before)
            places |= {f"layer{number}.pre": before, f"layer{number}": x}
        pool = x.mean((2, 3))
        return places | {"pool": pool, "logits": self.logits(pool)}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the last feature map."""
        places = self.places(images)
        return places["logits"], places["layer3"]
