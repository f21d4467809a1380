"""The metrics by their definitions: one image, one tile, one pixel at a time, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import torch


def tiles(h, w, side):
    """Row and column slices of each tile, row by row; the last ones reach to the edge."""
    rows, columns = h // side, w // side
    return [
        (
            slice(r * side, h if r == rows - 1 else (r + 1) * side),
            slice(c * side, w if c == columns - 1 else (c + 1) * side),
        )
        for r in range(rows)
        for c in range(columns)
    ]


def probability(model, image, target):
    with torch.no_grad():
        return float(model(image[None]).softmax(1)[0, target])


def degradation(model, x, target, maps, side, counts, filled):
    """Probabilities ``(N, S)`` of MoRF and LeRF; ``filled(image, missing)`` alters an image."""
    morf, lerf = [], []
    for image, t, relevance in zip(x, target.tolist(), maps, strict=True):
        cut = tiles(*image.shape[1:], side)
        mean = [float(relevance[place].double().mean()) for place in cut]
        least = sorted(range(len(cut)), key=lambda i: mean[i])
        for order, out in ((least[::-1], morf), (least, lerf)):
            curve = []
            for count in counts:
                missing = torch.zeros(image.shape[1:], dtype=torch.bool)
                for i in order[:count]:
                    missing[cut[i]] = True
                curve.append(probability(model, filled(image, missing), t))
            out.append(curve)
    return np.array(morf), np.array(lerf)


def degradation_score(morf, lerf, fractions):
    """Integral of LeRF - MoRF after the scale of the whole set, a trapezium at a time."""
    initial, final = morf[:, 0].mean(), morf[:, -1].mean()
    area = 0.0
    for curve, sign in ((lerf, 1), (morf, -1)):
        mean = ((curve - final) / (initial - final)).mean(0)
        for s in range(len(fractions) - 1):
            area += sign * (fractions[s + 1] - fractions[s]) * (mean[s] + mean[s + 1]) / 2
    return area


def mean_filled(image, missing):
    out = image.clone()
    for c in range(len(image)):
        out[c][missing] = image[c].mean()
    return out


def blur_filled(image, missing, sigma):
    out = image.clone()
    _, h, w = image.shape
    for r, c in itertools.product(range(h), range(w)):
        if missing[r, c]:
            down = torch.exp(-((torch.arange(h) - r) ** 2).double() / (2 * sigma**2))
            across = torch.exp(-((torch.arange(w) - c) ** 2).double() / (2 * sigma**2))
            weight = (down / down.sum())[:, None] * (across / across.sum())
            out[:, r, c] = (image * weight).sum((1, 2))
    return out


def harmonic(image, missing):
    """The dense system of ROAD: weights 1/6 direct, 1/12 diagonal, over their sum in the image."""
    channels, h, w = image.shape
    places = [p for p in itertools.product(range(h), range(w)) if missing[p]]
    number = {p: i for i, p in enumerate(places)}
    matrix = np.zeros((len(places), len(places)))
    right = np.zeros((len(places), channels))
    for (r, c), i in number.items():
        for dr, dc in itertools.product((-1, 0, 1), repeat=2):
            near = (r + dr, c + dc)
            if (dr or dc) and 0 <= near[0] < h and 0 <= near[1] < w:
                weight = 1 / 12 if dr and dc else 1 / 6
                matrix[i, i] += weight
                if near in number:
                    matrix[i, number[near]] -= weight
                else:
                    right[i] += weight * image[:, *near].numpy()
    solved = np.linalg.solve(matrix, right)
    out = image.clone()
    for (r, c), i in number.items():
        out[:, r, c] = torch.from_numpy(solved[i])
    return out


def sensitivity(model, x, target, maps, side, removed, baseline):
    """Correlations per image ``(N, S)`` and pooled ``(S,)`` for sets ``(N, S, K, T)``."""
    n, sizes, subsets, _ = removed.shape
    cut = tiles(*x.shape[2:], side)
    relevance, drops = np.zeros((n, sizes, subsets)), np.zeros((n, sizes, subsets))
    with torch.no_grad():
        for i, s, k in itertools.product(range(n), range(sizes), range(subsets)):
            image = x[i].clone()
            for t in removed[i, s, k].nonzero()[:, 0].tolist():
                relevance[i, s, k] += float(maps[i][cut[t]].double().sum())
                image[:, cut[t][0], cut[t][1]] = baseline
            whole, left = model(x[i][None])[0, target[i]], model(image[None])[0, target[i]]
            drops[i, s, k] = float(whole - left)
    each = [
        [np.corrcoef(relevance[i, s], drops[i, s])[0, 1] for s in range(sizes)] for i in range(n)
    ]
    pooled = [np.corrcoef(relevance[:, s].ravel(), drops[:, s].ravel())[0, 1] for s in range(sizes)]
    return np.array(each), np.array(pooled)


def bbox_ratio(relevance, boxes):
    """Mean over every order of equal pixels of the share of the top n pixels inside the boxes."""
    h, w = relevance.shape
    inside = {
        (r, c)
        for r, c in itertools.product(range(h), range(w))
        for x0, y0, x1, y1 in boxes
        if y0 <= r < y1 and x0 <= c < x1
    }
    pixels = sorted(itertools.product(range(h), range(w)), key=lambda p: -float(relevance[p]))
    groups = [list(g) for _, g in itertools.groupby(pixels, key=lambda p: float(relevance[p]))]
    top, ratios = [], []
    for group in groups:
        if len(top) + len(group) < len(inside):
            top += group
            continue
        for chosen in itertools.combinations(group, len(inside) - len(top)):
            ratios.append(len(inside & {*top, *chosen}) / len(inside))
        break
    return float(np.mean(ratios))


def ssim(a, b):
    """Windows of 11 pixels, standard deviation 1.5, one by one, on maps scaled to [0, 1]."""
    x, y = ((m - m.min()) / (m.max() - m.min()) for m in (a.double().numpy(), b.double().numpy()))
    place = np.arange(-5, 6)
    weight = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for r, c in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
        u, v = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
        mu, mv = (weight * u).sum(), (weight * v).sum()
        vu, vv = (weight * (u - mu) ** 2).sum(), (weight * (v - mv) ** 2).sum()
        cov = (weight * (u - mu) * (v - mv)).sum()
        light = (2 * mu * mv + 1e-4) / (mu**2 + mv**2 + 1e-4)
        found.append(light * (2 * cov + 9e-4) / (vu + vv + 9e-4))
    return float(np.mean(found))
