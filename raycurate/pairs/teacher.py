"""A cross-encoder that scores questions and documents together, in Ray actors."""

from __future__ import annotations

from typing import Any

import numpy as np


class Teacher:
    """Actors with a cross-encoder [Nogueira and Cho 2019] each, one a GPU, or one a core.

    Args:
        model: a folder, a Hugging Face id or `python:MODULE` of a sequence classifier with one output.
        actors: how many; by default one a GPU, on CPUs one a core.
    """

    def __init__(self, model: str, *, actors: int | None = None, max_length: int | None = None) -> None:
        import ray

        from raycurate.core.errors import CapacityError
        from raycurate.ray_runtime.cluster import capacity

        room = capacity().largest
        gpu = room.gpu >= 1
        count = actors or max(1, int(room.gpu if gpu else room.cpu))
        if not gpu and room.cpu < 0.5:
            raise CapacityError(f"there is no CPU for a teacher ({room.cpu:g})", where=model)
        share = {"num_cpus": 1.0 if gpu else max(0.5, room.cpu / count * 0.5), "num_gpus": 1.0 if gpu else 0.0}
        remote: Any = ray.remote(_CrossEncoder).options(**share, max_restarts=3, max_task_retries=3)
        self._actors: list[Any] = [remote.remote(model, max_length, gpu) for _ in range(count)]

    def scores(self, questions: list[str], texts: list[str]) -> np.ndarray:
        """The classifier's raw output for each pair, float32 [n]: a logit, not squeezed into [0, 1].

        Raises:
            RaycurateError: an output that is not a number, or a model with more than one.
        """
        import ray

        from raycurate.ray_runtime.cluster import raise_user_error

        cuts = np.linspace(0, len(texts), len(self._actors) + 1).astype(int)
        try:
            parts = ray.get(
                [
                    actor.scores.remote(questions[lo:hi], texts[lo:hi])
                    for actor, lo, hi in zip(self._actors, cuts[:-1], cuts[1:], strict=True)
                    if hi > lo
                ]
            )
        except Exception as error:
            raise_user_error(error)
            raise
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


class _CrossEncoder:
    def __init__(self, model: str, max_length: int | None, gpu: bool) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        from raycurate.core.errors import InputError
        from raycurate.encoders.embed_options import EmbedConfig
        from raycurate.models.fetch import fetch_model

        if not gpu:
            torch.set_num_threads(1)
        folder = fetch_model(EmbedConfig(model=model, input="(pairs)", output="(scores)"))
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        self._model = CrossEncoder(folder, device="cuda" if gpu else "cpu", **options)
        self._name = model
        if self._model.num_labels != 1:
            raise InputError(
                f"it has {self._model.num_labels} outputs; a teacher has one, the relevance",
                where=model,
                fix="Give a cross-encoder that was trained to rank",
            )

    def scores(self, questions: list[str], texts: list[str]) -> np.ndarray:
        import torch

        from raycurate.core.errors import InputError

        found = self._model.predict(
            list(zip(questions, texts, strict=True)), activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        values = np.asarray(found, np.float32).reshape(-1)
        if not np.isfinite(values).all():
            raise InputError("it gives scores that are not numbers", where=self._name)
        return values
