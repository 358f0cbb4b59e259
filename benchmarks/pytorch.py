"""The same network in PyTorch, as fast as PyTorch makes it on a CPU."""

from typing import Any

import numpy as np

from benchmarks.turns import Turn
from emotion_detection.settings.params import Network


def train(
    turn: Turn,
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    steps: int,
    bfloat16: bool,
    compiled: bool,
) -> None:
    """Train for ever, a turn of `steps` steps after the other; the images are in memory."""
    import torch
    from torch import nn

    channels, size = images.shape[3], images.shape[1]
    layers: list[Any] = []
    for filters, kernel in zip(network.filters, network.kernel_sizes, strict=True):
        for _ in range(network.convolutions):
            layers += [
                nn.Conv2d(channels, filters, kernel, padding="same"),
                nn.ReLU(),
                nn.BatchNorm2d(filters),
            ]
            channels = filters
        layers += [nn.MaxPool2d(2), nn.Dropout(network.conv_dropout)]
        size //= 2
    layers.append(nn.Flatten())
    units_before = channels * size * size
    for units in network.dense_units:
        layers += [
            nn.Linear(units_before, units),
            nn.ReLU(),
            nn.BatchNorm1d(units),
            nn.Dropout(network.dense_dropout),
        ]
        units_before = units
    layers.append(nn.Linear(units_before, int(labels.max()) + 1))
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 5e-4, fused=True)
    loss_of = nn.CrossEntropyLoss()
    forward = torch.compile(model) if compiled else model
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    targets = torch.from_numpy(labels)
    while True:
        turn.begin()
        for _ in range(steps):
            rows = torch.randint(len(pixels), (batch_size,))
            x = (pixels[rows].float() / 255).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = loss_of(forward(x), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        turn.end(steps * batch_size)
