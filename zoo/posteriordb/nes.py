r"""Party identification in the American National Election Study of 1980, on a scale of seven, as a regression.

.. math:: y_n \sim \mathcal{N}(\beta_1 + x_n^\top \beta_{2:9},\ \sigma^2)

with flat priors on :math:`\beta` and on :math:`\sigma > 0`; age is in four groups, of which three have a column.

Source: https://github.com/stan-dev/posteriordb, model ``nes``; Gelman and Hill (2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["nes"]


def nes(x: Tensor, partyid7: Tensor | None = None) -> Tensor:
    """Draw or observe the party identification of N people.

    :param x: ideology, race, three age groups, education, gender, income, ``(N, 8)``.
    :param partyid7: from 1, strong Democrat, to 7, strong Republican, ``(N,)``.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (9,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(x)):
        return pyro.sample("partyid7", dist.Normal(beta[0] + x @ beta[1:], sigma), obs=partyid7)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    ideology, race, education, gender, income, age, party = reals(
        data, "real_ideo", "race_adj", "educ1", "gender", "income", "age_discrete", "partyid7"
    )
    ages = [(age == group).to(age) for group in (2, 3, 4)]
    return torch.stack([ideology, race, *ages, education, gender, income], -1), party


posteriors.add("nes1980-nes", ReferencePosterior("nes1980-nes", nes, _arguments))
