"""Scikit-learn's digits, real data that comes with the package, and a small network that reads them."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

SIZE = 64
CLASSES = 10


class Digits(Dataset[dict[str, Tensor]]):
    """8 x 8 pixels in 0..1, and the digit."""

    def __init__(self, held_out: bool) -> None:
        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
        chosen = order[:400] if held_out else order[400:]
        self.pixels = torch.from_numpy(data.data).float()[chosen] / 16
        self.labels = torch.from_numpy(data.target)[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[at], "labels": self.labels[at]}


class Reader(nn.Module):
    """Three layers to cut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            *(nn.Linear(SIZE, SIZE), nn.GELU()),
            *(nn.Linear(SIZE, SIZE), nn.GELU()),
            *(nn.Linear(SIZE, SIZE), nn.GELU()),
        )
        self.head = nn.Linear(SIZE, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(pixels))
        return logits


def trained_reader(data: Digits) -> Reader:
    """A dense network that reads digits well."""
    reader = Reader()
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reader(data.pixels), data.labels).backward()
        optimizer.step()
    return reader.eval()


def accuracy(model: nn.Module, data: Digits) -> float:
    """The share that is read right."""
    with torch.no_grad():
        return float((model(data.pixels).argmax(-1) == data.labels).float().mean())
