"""Names that timm imports."""

from torchvision.absent import Absent


class CIFAR10(Absent): ...  # noqa: D101


class CIFAR100(Absent): ...  # noqa: D101


class MNIST(Absent): ...  # noqa: D101


class QMNIST(Absent): ...  # noqa: D101


class KMNIST(Absent): ...  # noqa: D101


class FashionMNIST(Absent): ...  # noqa: D101


class ImageNet(Absent): ...  # noqa: D101


class ImageFolder(Absent): ...  # noqa: D101
