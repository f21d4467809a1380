"""Double descent on digits in seconds: where it peaks, what removes it, and whose fault it is.

Run it with `python examples/16_double_descent.py`. It needs no download and one core.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from addis import analyze, data


def main() -> None:
    train, test = data.load("digits"), data.load("digits", "test")
    noisy = analyze.LabelNoise(train, p=0.1, seed=0)
    clean = test.floats(), test.targets

    # Width: random features, a least-squares fit for each width, all ridges from one decomposition.
    curve = analyze.rf_curve(
        *noisy.xy, *clean, p=(10, 30, 60, 100, 150, 180, 200, 220, 300, 600, 2000), n=(200,),
        ridge=(0, 1e-3), seeds=3,
    )  # fmt: skip
    print(analyze.double_descent_verdict(curve), "\n")
    for row in analyze.mitigation_panel(curve.at(ridge=0), {"ridge 0.001": curve.at(ridge=1e-3)}):
        outcome = "removes the peak" if row.removed else "does not remove the peak"
        print(f"{row.name} {outcome}: worst {row.worst.error:.3f} at p = {row.worst.value:g}\n")

    # Samples: the same model with more and more data.
    more = analyze.rf_curve(
        *noisy.xy, *clean, p=(200,), n=(50, 100, 150, 200, 250, 400, 1000), seeds=3
    )
    for n, error in zip(more.values, more.median("test_error"), strict=True):
        print(f"n = {n:4.0f}: test error {error:.3f}")

    # Any procedure of your own: here a small net, swept over its width.
    own = analyze.sweep(
        train_net, noisy.subset(range(300)), axis="width", values=(2, 4, 8, 16, 32), seeds=3
    )
    print("\n" + str(analyze.double_descent_verdict(own)))

    # How many samples can it fit? The definition, by bracketing and bisection.
    found = analyze.effective_model_complexity(
        lambda sample, seed: fit(sample, 8, seed)[1], noisy, eps=0.1, tolerance=0.2
    )
    print(f"\neffective complexity at width 8: {found.n} samples, {found.interval}")


def train_net(dataset: analyze.LabelNoise, config: analyze.Config) -> Mapping[str, float]:
    """Trains one net; returns what the sweep shall record."""
    net, train_error = fit(dataset, config["width"], config.seed)
    test = data.load("digits", "test")
    wrong = net(test.floats().flatten(1)).argmax(1) != test.targets
    return {"test_error": float(wrong.float().mean()), "train_error": train_error}


def fit(dataset: analyze.LabelNoise, width: int, seed: int) -> tuple[nn.Module, float]:
    """A hidden layer of ``width``, 300 full-batch steps of Adam; the net and its training error."""
    x, y = dataset.xy
    x = x.flatten(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, float((net(x).argmax(1) != y).float().mean())


if __name__ == "__main__":
    main()
