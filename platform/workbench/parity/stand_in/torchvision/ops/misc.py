"""Names that timm and open_clip import."""

from torchvision.absent import Absent


class FrozenBatchNorm2d(Absent): ...  # noqa: D101
