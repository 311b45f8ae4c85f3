"""Posteriors of posteriordb with reference draws, as plain Pyro models: the truth that guides are held against.

``posteriors`` is their registry. Each has Stan's parameters in Stan's parametrisation, the data, and ten chains of a
thousand reference draws. Files are read from a clone of https://github.com/stan-dev/posteriordb that the environment
variable ``POSTERIORDB`` names, or found as other data sets are (``ZOO_DATA``, cache, network).

References:
    Magnusson, Torgander, Bürkner, Zhang, Carpenter and Vehtari (2024), posteriordb: testing, benchmarking and developing
    Bayesian inference algorithms.
"""

from zoo.posteriordb.arK import arK
from zoo.posteriordb.arma11 import arma11
from zoo.posteriordb.blr import blr
from zoo.posteriordb.diamonds import diamonds
from zoo.posteriordb.garch11 import garch11
from zoo.posteriordb.gp_regr import gp_regr
from zoo.posteriordb.hmm_example import hmm_example
from zoo.posteriordb.kidscore_interaction import kidscore_interaction
from zoo.posteriordb.kidscore_momiq import kidscore_momiq
from zoo.posteriordb.logearn_interaction import logearn_interaction
from zoo.posteriordb.logmesquite import logmesquite
from zoo.posteriordb.logmesquite_logvolume import logmesquite_logvolume
from zoo.posteriordb.lotka_volterra import lotka_volterra
from zoo.posteriordb.low_dim_gauss_mix import low_dim_gauss_mix
from zoo.posteriordb.nes import nes
from zoo.posteriordb.posterior import ReferencePosterior, posteriors

from zoo.posteriordb import eight_schools  # isort: skip  # noqa: F401  (its models are the zoo's own)

__all__ = [
    "ReferencePosterior",
    "arK",
    "arma11",
    "blr",
    "diamonds",
    "garch11",
    "gp_regr",
    "hmm_example",
    "kidscore_interaction",
    "kidscore_momiq",
    "logearn_interaction",
    "logmesquite",
    "logmesquite_logvolume",
    "lotka_volterra",
    "low_dim_gauss_mix",
    "nes",
    "posteriors",
]
