"""The judges that the full-size speech decoder learns to please: is a waveform real? Training only.

Source: HiFi-GAN (arXiv 2010.05646), multi-period and multi-scale discriminators, with VITS's (arXiv 2106.06103) numbers; the loss is
LSGAN's (arXiv 1611.04076).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
SLOPE = 0.1  # of leaky ReLU


class Judge(nn.Module):
    """Convolutions over a waveform, folded into columns of `period` samples, or of one: (B, 1, samples) -> features of every
    layer, the scores last."""

    def __init__(self, period: int, layers: list[nn.Module], last: nn.Module):
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList(map(weight_norm, layers))
        self.last = weight_norm(last)

    def forward(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        x = waveform
        if self.period > 1:
            x = F.pad(x, (0, -x.shape[-1] % self.period), mode="reflect").unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return [*features, self.last(x)]


def period_judge(period: int) -> Judge:
    widths = (1, 32, 128, 512, 1024)
    layers = [nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0)) for a, b in pairwise(widths)]
    layers.append(nn.Conv2d(1024, 1024, (5, 1), padding=(2, 0)))
    return Judge(period, layers, nn.Conv2d(1024, 1, (3, 1), padding=(1, 0)))


def scale_judge() -> Judge:
    sizes = ((1, 16, 1), (16, 64, 4), (64, 256, 16), (256, 1024, 64), (1024, 1024, 256))
    first, *others = sizes
    layers = [nn.Conv1d(first[0], first[1], 15, padding=7)]
    layers += [nn.Conv1d(a, b, 41, 4, padding=20, groups=groups) for a, b, groups in others]
    layers.append(nn.Conv1d(1024, 1024, 5, padding=2))
    return Judge(1, layers, nn.Conv1d(1024, 1, 3, padding=1))


class Discriminator(nn.ModuleList):
    """All judges; 46.7 M parameters."""

    def __init__(self):
        super().__init__([scale_judge(), *map(period_judge, PERIODS)])

    def forward(self, waveform: torch.Tensor) -> list[list[torch.Tensor]]:
        return [judge(waveform) for judge in self]


def judges_loss(real: list[list[torch.Tensor]], fake: list[list[torch.Tensor]]) -> torch.Tensor:
    """What the judges minimise: scores of 1 for real waveforms, 0 for others."""
    return sum(((1 - r[-1]) ** 2).mean() + (f[-1] ** 2).mean() for r, f in zip(real, fake, strict=True))


def pleasing_loss(fake: list[list[torch.Tensor]]) -> torch.Tensor:
    """What the decoder minimises: its waveforms should get scores of 1."""
    return sum(((1 - f[-1]) ** 2).mean() for f in fake)


def feature_loss(real: list[list[torch.Tensor]], fake: list[list[torch.Tensor]]) -> torch.Tensor:
    """Feature matching: twice the mean difference of every layer below the scores."""
    pairs = [(a.detach(), b) for r, f in zip(real, fake, strict=True) for a, b in zip(r[:-1], f[:-1], strict=True)]
    return 2 * sum((a - b).abs().mean() for a, b in pairs)
