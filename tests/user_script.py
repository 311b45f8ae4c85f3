"""What a type checker makes of a user's script: ``make lint`` checks every line below; nothing runs it."""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor

import guides
import zoo
from guides.diagnostics import Diagnosis


def script(x: Tensor, y: Tensor) -> None:
    network = zoo.BayesianMLP(1, hidden=(20,))
    posterior = guides.fit(network, "mean_field", x, y, steps=100, seed=1)
    assert_type(posterior, guides.Posterior)
    assert_type(posterior.sample(10), dict[str, Tensor])
    assert_type(posterior.predict(x, num_samples=5)["y"].mean(), Tensor)
    assert_type(posterior.replicate(0), guides.Posterior)
    found = posterior.diagnose()
    assert_type(found, Diagnosis)
    assert_type(found.k_hat, float | None)
    table = guides.compare(network, ["mean_field", ("low_rank", {"rank": 1}), guides.MeanField], x, y, steps=100)
    assert_type(table.posteriors[table.best], guides.Posterior)
    assert_type(guides.fit_many(network, "map", [(x, y)]), list[guides.Posterior])
    assert_type(guides.log_density(network, x, y)(torch.zeros(61)), Tensor)
    school, (sigma, effects) = zoo.EightSchools.example()
    assert_type(school, zoo.EightSchools)
    assert_type(guides.fit(school, None, sigma, effects), guides.Posterior)
    assert_type(zoo.datasets.diabetes().x, Tensor)
    assert_type(zoo.__version__ + guides.__version__, str)
