"""Plain convolutional nets in torch, which contrast the same batches as a run of own_data.

What one writes first for pictures, spectrograms and texts: four convolutions of stride 2 with batch
norms and an average over places; for texts two convolutions over token vectors and a mean; a linear
layer into a shared space, InfoNCE over all pairs of views, AdamW with a cosine schedule.
"""

import itertools

import numpy as np
import torch
from torch import nn

WIDTH = 128


class Pictures(nn.Module):
    """[B, C, H, W] to unit vectors."""

    def __init__(self, channels, widths=(32, 64, 128, 256)):
        super().__init__()
        layers = []
        for a, b in itertools.pairwise((channels, *widths)):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(widths[-1], WIDTH)

    def forward(self, x):
        return nn.functional.normalize(self.out(self.layers(x).mean((2, 3))), dim=1)


class Texts(nn.Module):
    """Ids [B, L], 0 = none, to unit vectors."""

    def __init__(self, ids, width=128):
        super().__init__()
        self.table = nn.Embedding(ids, width, padding_idx=0)
        self.layers = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Linear(width, WIDTH)

    def forward(self, ids):
        there = (ids > 0)[:, None].float()
        x = self.layers(self.table(ids).transpose(1, 2) * there) * there
        return nn.functional.normalize(self.out(x.sum(2) / there.sum(2).clamp(min=1)), dim=1)


def array(tokens, spec):
    """What a net reads of a view of a batch: pictures [B, C, H, W], or ids [B, L] from 1 on."""
    if not spec.width:
        return torch.from_numpy(np.array(tokens.ids_BL)).long()
    value, slot = (np.asarray(x) for x in tokens.values[spec.name])
    (t, h, w), (high, wide, channels) = spec.grid, spec.piece
    rows, columns = (t, w) if h == 1 else (h, w)
    used = (slot < tokens.ids_BL.shape[1])[:, :, None]
    x = np.where(used, value, 0).reshape(-1, rows, columns, high, wide, channels)
    x = x.transpose(0, 5, 1, 3, 2, 4).reshape(len(x), channels, rows * high, columns * wide)
    return torch.from_numpy(np.ascontiguousarray(x))


def train(specs, batches, total, seed):
    """Encoders by stream, trained on so many batches.

    Args:
      specs: by stream, those of its pieces; batches: yields (views, present by stream, identity).
    """
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    size = 1 + max(s.vocab_size for s in specs.values()) + 256
    nets = nn.ModuleDict(
        {n: Pictures(s.piece[2]) if s.width else Texts(size) for n, s in specs.items()}
    )
    scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    tx = torch.optim.AdamW([*nets.parameters(), scale], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(tx, total)
    for views, present, identity in itertools.islice(batches, total):
        z = {n: nets[n](array(views[n], s)) for n, s in specs.items()}
        same = torch.from_numpy(identity[:, None] == identity[None, :])
        losses = []
        for a, b in itertools.combinations(sorted(specs), 2):
            rows = torch.from_numpy(np.flatnonzero(present[a] & present[b]))
            logits = scale.exp().clamp(max=100) * z[a][rows] @ z[b][rows].T
            hidden = logits.masked_fill(~same[rows][:, rows], -1e9)
            for all_of, true in ((logits, hidden), (logits.T, hidden.T)):
                losses.append((all_of.logsumexp(1) - true.logsumexp(1)).mean())
        loss = sum(losses) / len(losses)
        tx.zero_grad()
        loss.backward()
        tx.step()
        schedule.step()
    return nets.eval()


def vectors(net, tokens, spec):
    """Unit vectors [N, D] of a view."""
    with torch.no_grad():
        return net(array(tokens, spec)).numpy()
