"""A prototype of training whose steps are one CUDA graph each, for `gpu.py` to compare with training as it is.

Elsewhere than on CUDA it trains eagerly, through the same steps. It uses private parts of `Training`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hpo.recipes.recipe import Recipe
from hpo.recipes.schedule import learning_rate
from hpo.settings import Precision
from hpo.training.data import Dataset
from hpo.training.train import State, Training

WARM_UP_STEPS = 3
"""Eager steps before a graph is captured: libraries load, and momentum appears. They belong to the trajectory."""


class GraphTraining(Training):
    """A walk along a trajectory with one launch a step.

    A graph holds the learning rate as the number that the eager kernel gets (a tensor would be a float32, which is
    another number), so there is one graph for each rate. What changes from step to step lies outside: the generator's
    seed, which a replay reads from the host, and the indices of the batch, which are copied to the same place.

    Args:
        graphed: Whether to capture graphs on CUDA.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, precision: Precision, graphed: bool = True) -> None:
        super().__init__(recipe, dataset, precision)
        self._indices = torch.zeros(self._batches.batch_size, dtype=torch.int64, device=self.device)
        self._graphed = graphed and self.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rate = self._graph_rate = 0.0
        self._eager_steps = 0
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # capture and autocast ask the current device
            self._stream = torch.cuda.Stream(self.device)
            self._pool = torch.cuda.graph_pool_handle()

    def advance(self, until: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Train up to an iteration, or until `stop` returns True, and return the number of steps."""
        started, per_epoch = self.iteration, self._batches.per_epoch
        self.model.train()
        order = None
        with self._on_stream():
            while self.iteration < until and not stop():
                epoch, position = divmod(self.iteration, per_epoch)
                if order is None or position == 0:
                    order = self._batches.order(self._seeded("order", epoch))
                self._rate = learning_rate(self.recipe, self.iteration)
                self._indices.copy_(order[position])
                graph = self._find_graph()
                self._seeded("iteration", self.iteration)
                if graph is None:
                    self._step()
                    self._eager_steps += 1
                else:
                    graph.replay()
                self._loss_count += 1
                self.iteration += 1
        return self.iteration - started

    def restore(self, state: State) -> None:
        """Go to a state of this recipe's trajectory, and forget the graph, which writes to the buffers from before."""
        super().restore(state)
        self._graph, self._eager_steps = None, 0

    def _step(self) -> None:
        """Do what a graph holds; as a function, so that a step's autograd graph is gone before a capture."""
        images, labels = self._batches.draw(self._indices, self._generator)
        with self._autocast():
            logits = self.model(images)
            loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        self._optimizer.step(self._rate)
        self._loss_sum += loss.detach()
        self._correct += (logits.detach().argmax(1) == labels).sum()

    def _find_graph(self) -> torch.cuda.CUDAGraph | None:
        if not self._graphed or self._eager_steps < WARM_UP_STEPS:
            return None
        if self._graph is None or self._rate != self._graph_rate:
            self._graph, self._graph_rate = self._capture(), self._rate
        return self._graph

    def _capture(self) -> torch.cuda.CUDAGraph:
        self._stream.synchronize()  # the graph from before may still run
        self._graph = None
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # needed up to torch 2.11, deprecated and without effect after it
            graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self._step()
        return graph

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Train on a stream of its own: a graph is captured on no other, and gradients stay on the stream they know."""
        if self.device.type != "cuda":
            yield
            return
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)
