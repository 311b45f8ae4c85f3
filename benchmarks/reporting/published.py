"""Numbers other people published, each with its source and the protocol it was measured under.

The only place in the project where results are typed in, and none of them is ours. Only numbers that were read in the
named source are here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published", "published"]


@dataclass(frozen=True)
class Published:
    """One published number.

    :param suite: the suite whose protocol it belongs beside.
    :param method: what the source calls the method, short.
    :param dataset: the data set (:attr:`benchmarks.protocol.task.Task.dataset`).
    :param metric: what was measured; ``"test_error"`` where the source does not say in which units.
    :param value: the number.
    :param spread: what the source prints after ±, ``None`` where it is not quoted here.
    :param spread_is: what that ± is.
    :param source: author, year, where to find it.
    :param protocol: how it was measured, and where that differs from ours.
    """

    suite: str
    method: str
    dataset: str
    metric: str
    value: float
    spread: float | None
    spread_is: str
    source: str
    protocol: str


_REPORT = (
    'B. P. Acharya, "Adaptive approximate Bayesian inference with recurrent networks", report supervised by '
    "E. Nalisnick, University of California, Irvine, Table 1"
)
_REPORT_PROTOCOL = (
    "one random split 70:10:20 or several (not stated), one hidden layer of 50, learning rate 3e-4, batch 128, up to 1000 "
    "epochs, early stopping with 25 look-ahead epochs; units of the test error and meaning of ± not stated"
)
_BNN = "github.com/Alaya-in-Matrix/BNN, README, tables of UCI results"
_BNN_PROTOCOL = (
    "20 published 90:10 splits, one hidden layer of 50 ReLU, batch 32, 400 epochs; ± is the standard deviation over "
    "splits; log-likelihood is the negative of the printed NLL"
)
_PBP = "J. M. Hernández-Lobato and R. P. Adams, Probabilistic backpropagation, ICML 2015, arXiv:1502.05336, Tables 1-2"
_ENSEMBLE = "B. Lakshminarayanan, A. Pritzel, C. Blundell, Deep ensembles, NeurIPS 2017, arXiv:1612.01474, Table 1"
_DROPOUT = (
    "J. Mukhoti, P. Stenetorp, Y. Gal, On the importance of strong baselines in Bayesian deep learning, 2018, "
    "arXiv:1811.09385, means recomputed from the per-split files of github.com/yaringal/DropoutUncertaintyExps"
)
_TWENTY = "20 published 90:10 splits, one hidden layer of 50 ReLU"

_SETS = ("boston", "energy", "kin8nm", "power", "yacht")
_MORE = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht")

# method: source, protocol, data sets, RMSE and its spread, log-likelihood and its spread
_Row = tuple[str, str, str, tuple[str, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]

_UCI: tuple[_Row, ...] = (
    (
        "plain Pyro SVI",
        _BNN,
        _BNN_PROTOCOL,
        _MORE,
        (3.206, 5.811, 1.118, 0.086, 0.002, 4.159, 4.606, 0.637, 1.324),
        (0.857, 0.536, 0.290, 0.003, 0.000, 0.169, 0.025, 0.035, 0.319),
        (-2.626, -3.285, -1.584, 0.965, 4.377, -2.915, -2.945, -0.970, -1.622),
        (0.386, 0.184, 0.217, 0.070, 0.016, 0.075, 0.005, 0.061, 0.061),
    ),
    (
        "Bayes by Backprop",
        _BNN,
        _BNN_PROTOCOL,
        _MORE,
        (3.313, 5.789, 0.999, 0.086, 0.003, 4.218, 4.684, 0.641, 0.968),
        (0.963, 0.436, 0.494, 0.004, 0.001, 0.150, 0.051, 0.038, 0.224),
        (-2.638, -3.260, -1.555, 0.979, 4.297, -2.935, -2.965, -0.968, -1.449),
        (0.409, 0.156, 0.501, 0.076, 0.107, 0.069, 0.012, 0.064, 0.086),
    ),
    (
        "PBP",
        _PBP,
        "20 random 90:10 splits, one hidden layer of 50 ReLU",
        _SETS,
        (3.01, 1.80, 0.10, 4.12, 1.02),
        (),
        (-2.57, -2.04, 0.90, -2.84, -1.63),
        (),
    ),
    (
        "deep ensemble, M=5",
        _ENSEMBLE,
        f"{_TWENTY}, heteroscedastic noise, 40 epochs",
        _SETS,
        (3.28, 2.09, 0.09, 4.11, 1.58),
        (),
        (-2.41, -1.38, 1.20, -2.79, -1.18),
        (),
    ),
    (
        "tuned MC dropout",
        _DROPOUT,
        f"{_TWENTY}, dropout rate and noise tuned for every split on validation data",
        _SETS,
        (2.904, 0.539, 0.0789, 4.014, 0.666),
        (),
        (-2.402, -1.212, 1.136, -2.808, -1.250),
        (),
    ),
)

_ADAPTIVE = _REPORT.replace("Table 1", "section 4.5")
_ADAPTIVE_PROTOCOL = "binary MNIST, 200 hidden, 50 latent, K=5, 583 epochs; number of importance samples not stated"
_DLGMM = (
    "E. Nalisnick, L. Hertel, P. Smyth, Approximate inference for deep latent Gaussian mixtures, 2016, training logs in "
    "github.com/enalisnick/mixture_density_VAEs, MNIST/train_logs"
)
_DLGMM_PROTOCOL = (
    "fixed binarisation, {net}, Adam 3e-4, batch 100, early stopping on the validation ELBO with 25 look-ahead epochs, 50 "
    "importance samples; their encoder has no activation after its hidden layer, ours has"
)
_BURDA = "Y. Burda, R. Grosse, R. Salakhutdinov, Importance weighted autoencoders, ICLR 2016, arXiv:1509.00519, appendix D"
_BURDA_PROTOCOL = (
    "fixed binarisation, {net}, tanh, batch 20, 3280 epochs, learning rate 1e-3 divided by 10^(1/7) after 1, 3, 9, ... "
    "epochs, 5000 importance samples, no validation set"
)
_PYTHAE = (
    "C. Chadebec, L. Vincent, S. Allassonnière, Pythae, 2022, reproductions in github.com/clementchadebec/benchmark_VAE"
)

# method, data set, log p(x), source, protocol
_MNIST: tuple[tuple[str, str, float, str, str], ...] = (
    ("VAE, 500 hidden, S=50", "mnist_500_25", -96.801, _DLGMM, _DLGMM_PROTOCOL.format(net="784-500-25")),
    ("DLGMM K=3, 500 hidden, S=50", "mnist_500_25", -96.496, _DLGMM, _DLGMM_PROTOCOL.format(net="784-500-25")),
    ("DLGMM K=3, 1000 hidden, S=50", "mnist_500_25", -96.240, _DLGMM, _DLGMM_PROTOCOL.format(net="784-1000-25")),
    ("DLGMM K=5, 1500 hidden, S=50", "mnist_500_25", -96.215, _DLGMM, _DLGMM_PROTOCOL.format(net="784-1500-25")),
    (
        "adaptive RNN mixture",
        "mnist_500_25",
        -143.827,
        _ADAPTIVE,
        _ADAPTIVE_PROTOCOL,
    ),
    ("VAE, S=5000", "mnist_200_200_50", -88.71, _BURDA, _BURDA_PROTOCOL.format(net="784-200-200-50")),
    ("IWAE-50, S=5000", "mnist_200_200_50", -87.10, _BURDA, _BURDA_PROTOCOL.format(net="784-200-200-50")),
    (
        "IWAE-50, two stochastic layers, S=5000",
        "mnist_200_200_50",
        -85.32,
        _BURDA,
        _BURDA_PROTOCOL.format(net="stochastic layers of 100 and 50"),
    ),
    (
        "VAE + VampPrior (K=500), S=5000",
        "mnist_200_200_50",
        -85.79,
        _PYTHAE,
        "binary MNIST, which binarisation is not stated, 5000 importance samples; reproduces J. Tomczak and M. Welling, VAE "
        "with a VampPrior, AISTATS 2018",
    ),
)
_TUTORIAL = "Pyro tutorial, Conditional Variational Auto-encoder, pyro.ai/examples/cvae.html"
_TUTORIAL_PROTOCOL = (
    "grey levels under a Bernoulli, the test set used for early stopping, minus the ELBO of the pixels that were not "
    "given with 10 draws"
)
_QUADRANTS = {
    "plain net of Pyro's tutorial": (100.4, 61.9, 25.4),
    "CVAE of Pyro's tutorial": (71.8, 51.0, 24.2),
}

_REPORT_TABLE = {
    "boston": ((2.275, 0.132), (2.764, 1.189)),
    "energy": ((0.058, 0.013), (0.186, 0.119)),
    "yacht": ((1.984, 0.596), (1.953, 0.626)),
}


def _uci() -> Iterable[Published]:
    for method, source, protocol, sets, rmse, rmse_sd, likelihood, likelihood_sd in _UCI:
        for name, numbers, spreads in (("rmse", rmse, rmse_sd), ("log_likelihood", likelihood, likelihood_sd)):
            for index, dataset in enumerate(sets):
                spread = spreads[index] if spreads else None
                kind = "standard deviation over splits" if spreads else ""
                yield Published("uci", method, dataset, name, numbers[index], spread, kind, source, protocol)


def _report() -> Iterable[Published]:
    for dataset, row in _REPORT_TABLE.items():
        for method, (value, spread) in zip(("mean_field", "laplace"), row):
            yield Published("table1", method, dataset, "test_error", value, spread, "not stated", _REPORT, _REPORT_PROTOCOL)


def _adaptive() -> Iterable[Published]:
    """The report's run maximised what it prints, so both of its numbers stand beside ours as printed."""
    for dataset, name, value in (
        ("mnist_adaptive", "log_px", -143.827),
        ("mnist_as_printed", "log_px", -143.827),
        ("mnist_as_printed", "objective_test", -37.5),
    ):
        yield Published("adaptive", "the report's run", dataset, name, value, None, "", _ADAPTIVE, _ADAPTIVE_PROTOCOL)


def _images() -> Iterable[Published]:
    for method, dataset, value, source, protocol in _MNIST:
        yield Published("mnist", method, dataset, "log_px", value, None, "", source, protocol)
    for method, row in _QUADRANTS.items():
        for given, value in enumerate(row, start=1):
            dataset = f"mnist_given_{given}"
            yield Published("cvae", method, dataset, "tutorial_loss", value, None, "", _TUTORIAL, _TUTORIAL_PROTOCOL)


PUBLISHED: tuple[Published, ...] = (*_report(), *_uci(), *_adaptive(), *_images())
"""Every published number that the project prints."""


def published(suite: str, dataset: str | None = None, metric: str | None = None) -> list[Published]:
    """Return the published numbers of a suite, of one data set and metric where given."""
    return [
        entry
        for entry in PUBLISHED
        if entry.suite == suite and dataset in (None, entry.dataset) and metric in (None, entry.metric)
    ]
