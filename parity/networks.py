"""The tutorial's networks, with the tutorial's module names, written anew.

Source: "Knowledge Distillation Tutorial", https://pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html
(DeepNN and LightNN, and their variants that also return a hidden representation).
"""

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
