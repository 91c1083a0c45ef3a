"""The bare PyTorch loop: what a careful researcher writes without any framework.

One reused module, weights copied in place, tensors indexed directly, one torch.optim.SGD, one
thread. It visits rows in our orders, drawn for all clients at once, so both sides do the same work.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from atoll.core.rng import shuffles
from atoll.learn.dense import Dense

from .sampling import cohort, keys, start
from .workloads import Rows, Workload


class Bare:
    """A side of the bench; see rows.Side."""

    engine = "torch"

    def __init__(self, work: Workload, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.work, learner = work, work.learner
        self.net = work.module()
        self.turned = isinstance(learner, Dense)  # its weights are (in, out), PyTorch's (out, in)
        self.params = list(self.net.parameters())
        with torch.no_grad():
            for p, leaf in zip(self.params, start(work).values(), strict=True):
                p.copy_(torch.tensor(leaf.T.copy() if self.turned else leaf))
        self.model = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.SGD(self.params, lr=learner.lr)
        self.shards = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in work.shards()]
        self.logistic = learner.loss == "logistic"
        if self.logistic:
            self.shards = [(x, y.float()) for x, y in self.shards]

    def play(self, r: int) -> None:
        """One round: every client of the cohort from the global model, then the weighted mean."""
        clients = cohort(self.work, r)
        orders = torch.from_numpy(shuffles(keys(clients, r), self.work.learner.epochs, self.work.each))
        total = [torch.zeros_like(g) for g in self.model]
        rows = 0
        for client, order in zip(clients, orders, strict=True):
            with torch.no_grad():
                for p, g in zip(self.params, self.model, strict=True):
                    p.copy_(g)
            x, y = self.shards[client]
            self._train(x, y, order)
            with torch.no_grad():
                for t, p in zip(total, self.params, strict=True):
                    t.add_(p, alpha=len(x))
            rows += len(x)
        self.model = [t / rows for t in total]

    def _train(self, x: torch.Tensor, y: torch.Tensor, order: torch.Tensor) -> None:
        logistic, batch = self.logistic, self.work.learner.batch_size or len(x)
        for epoch in order:
            for at in range(0, len(x), batch):
                row = epoch[at : at + batch]
                z = self.net(x[row])
                loss = (
                    F.binary_cross_entropy_with_logits(z[:, 0], y[row])
                    if logistic
                    else F.cross_entropy(z, y[row])
                )
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()

    def weights(self) -> NDArray[np.float32]:
        """The global model in the order of our leaves."""
        return np.concatenate([(g.numpy().T if self.turned else g.numpy()).reshape(-1) for g in self.model])

    def accuracy(self) -> float:
        """On the test rows, of the global model."""
        test: Rows = self.work.load().test
        with torch.no_grad():
            for p, g in zip(self.params, self.model, strict=True):
                p.copy_(g)
            z = self.net(torch.from_numpy(test.x)).numpy()
        right = (z[:, 0] > 0) == test.y if self.work.learner.loss == "logistic" else z.argmax(1) == test.y
        return float(right.mean())
