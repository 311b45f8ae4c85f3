"""Stochastic variational inference in plain PyTorch: what the engine must reproduce, readable in one sitting.

No Pyro, no engine. A *draw* maps parameters and standard noise to the unconstrained latents and their log density; a
*log joint* scores latents. :func:`elbo` and :func:`svi` are all there is to variational inference; below them is one small
model and one draw per registered family.
"""

import math

import torch
from torch.nn.functional import softplus


def elbo(log_joint, draw, parameters, normals, uniforms, strata=1):
    """Mean over particles of log p(x, z) - log q(z), for noise of shape (particles, n)."""
    terms = []
    for particle, (e, u) in enumerate(zip(normals, uniforms)):
        z, log_q = draw(parameters, e, u, particle % strata)
        terms.append(log_joint(z) - log_q)
    return torch.stack(terms).mean()


def svi(objective, parameters, steps, lr):
    """Maximise objective(parameters, step) by Adam; return the losses and the final parameters."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    adam = torch.optim.Adam(parameters.values(), lr=lr)
    losses = []
    for step in range(steps):
        adam.zero_grad()
        loss = -objective(parameters, step)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return torch.tensor(losses), {name: value.detach() for name, value in parameters.items()}


def noise(seed, steps, particles, normals, uniforms, chunk=None):
    """Standard normals and uniforms of every step, drawn the way the engine draws them: chunk by chunk."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for start in range(0, steps, chunk or steps):
        shape = (min(chunk or steps, steps - start), particles)
        drawn.append((torch.randn(*shape, normals, generator=generator), torch.rand(*shape, uniforms, generator=generator)))
    return torch.cat([n for n, _ in drawn]), torch.cat([u for _, u in drawn])


def batches(seed, steps, size, batch_size):
    """Row numbers of every step's minibatch: shuffled passes over the data, one after the other."""
    generator = torch.Generator().manual_seed(seed + 2**31)
    passes = math.ceil(steps * batch_size / size)
    stream = torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])
    return stream[: steps * batch_size].view(steps, batch_size)


def log_normal(value, loc, scale):
    return -0.5 * ((value - loc) / scale) ** 2 - torch.as_tensor(scale).log() - 0.5 * math.log(2 * math.pi)


class Regression:
    """w ~ N(0, 1)^3, s ~ HalfNormal(1), y ~ N(x w, s); latents z = (w, log s)."""

    def __init__(self, x, y, scale=1.0):
        self.x, self.y, self.scale = x, y, scale

    def log_likelihood(self, f, z):
        return self.scale * log_normal(self.y, f, z[3].exp()).sum()

    def log_prior_w(self, z):
        return log_normal(z[:3], 0.0, 1.0).sum()

    def log_prior_s(self, z):
        return math.log(2.0) + log_normal(z[3].exp(), 0.0, 1.0)

    def __call__(self, z, jacobian=True):
        prior = self.log_prior_w(z) + self.log_prior_s(z) + (z[3] if jacobian else 0.0)
        return self.log_likelihood(self.x @ z[:3], z) + prior


def map_elbo(model, p, normals, uniforms):
    """MAP is taken in the constrained space, so without the Jacobian of s = exp(z)."""
    return model(torch.cat([p["w"].reshape(-1), p["s"].reshape(1)]), jacobian=False)


def laplace_elbo(model, p, normals, uniforms):
    return elbo(model, lambda p, e, u, k: (p["loc"], 0.0), p, normals, uniforms)


def ensemble_elbo(model, p, normals, uniforms):
    return elbo(model, lambda p, e, u, k: (p["locs"][k], 0.0), p, normals, uniforms, strata=len(p["locs"]))


def mean_field_draw(p, e, u, k):
    scale = softplus(p["scale"])
    z = p["loc"] + scale * e[:4]
    return z, log_normal(z, p["loc"], scale).sum()


def mean_field_monte_carlo(model, p, normals, uniforms):
    return elbo(model, mean_field_draw, p, normals, uniforms)


def mean_field_closed_form(model, p, normals, uniforms, product=None):
    """The divergence of w from its normal prior in closed form; that of s, whose prior is not normal, from the draw."""
    scale = softplus(p["scale"])
    kl = (0.5 * (scale**2 + p["loc"] ** 2 - 1) - scale.log())[:3].sum()

    def log_joint(z, f):
        return model.log_likelihood(f, z) + model.log_prior_s(z) + z[3] - log_normal(z[3], p["loc"][3], scale[3])

    terms = []
    for e, u in zip(normals, uniforms):
        z, _ = mean_field_draw(p, e, u, 0)
        terms.append(log_joint(z, model.x @ z[:3] if product is None else product(p, z, e, u)))
    return torch.stack(terms).mean() - kl


def mean_field_local(model, p, normals, uniforms):
    """Draw each product x_n w from its own normal."""

    def product(p, z, e, u):
        variance = model.x**2 @ softplus(p["scale"][:3]) ** 2
        return model.x @ p["loc"][:3] + variance.sqrt() * e[4:]

    return mean_field_closed_form(model, p, normals, uniforms, product)


def mean_field_flipout(model, p, normals, uniforms):
    """Flip signs of the deviation w - mean per data point, on the side of inputs and on the side of outputs."""

    def product(p, z, e, u):
        n = len(model.x)
        sign_in, sign_out = torch.where(u[: 3 * n] < 0.5, -1.0, 1.0).view(n, 3), torch.where(u[3 * n :] < 0.5, -1.0, 1.0)
        return model.x @ p["loc"][:3] + (model.x * sign_in) @ (z[:3] - p["loc"][:3]) * sign_out

    return mean_field_closed_form(model, p, normals, uniforms, product)


def full_rank_elbo(model, p, normals, uniforms):
    def draw(p, e, u, k):
        tril = softplus(p["scale"])[:, None] * (p["scale_tril"].tril(-1) + torch.eye(4))
        return p["loc"] + tril @ e, log_normal(e, 0.0, 1.0).sum() - tril.diagonal().log().sum()

    return elbo(model, draw, p, normals, uniforms)


def structured_elbo(model, p, normals, uniforms):
    """A full-rank normal for w, and a normal of its own for log s."""

    def draw(p, e, u, k):
        tril = softplus(p["0.scale"])[:, None] * (p["0.scale_tril"].tril(-1) + torch.eye(3))
        scale = softplus(p["1.scale"])
        z = torch.cat([p["0.loc"] + tril @ e[:3], p["1.loc"] + scale * e[3:]])
        log_q_w = log_normal(e[:3], 0.0, 1.0).sum() - tril.diagonal().log().sum()
        return z, log_q_w + log_normal(z[3], p["1.loc"][0], scale[0])

    return elbo(model, draw, p, normals, uniforms)


def low_rank_elbo(model, p, normals, uniforms):
    def draw(p, e, u, k):
        scale, rank = softplus(p["scale"]), p["cov_factor"].shape[1]
        factor = scale[:, None] * p["cov_factor"]
        covariance = factor @ factor.T + (scale**2).diag()
        step = factor @ e[:rank] + scale * e[rank:]
        mahalanobis = step @ torch.linalg.solve(covariance, step)
        return p["loc"] + step, -0.5 * (mahalanobis + torch.logdet(2 * math.pi * covariance))

    return elbo(model, draw, p, normals, uniforms)


def mixture_elbo(model, p, normals, uniforms):
    """Every component drawn once and weighed; the divergence of w from its prior in closed form, component by component."""
    scales, log_weights = softplus(p["scale"]), p["logits"] - p["logits"].logsumexp(0)
    terms = []
    for k, e in enumerate(normals):
        loc, scale = p["loc"][k], scales[k]
        z = loc + scale * e
        kl = (0.5 * (scale**2 + loc**2 - 1) - scale.log())[:3].sum()
        log_qs = log_normal(z, p["loc"], scales).sum(-1)
        excess = (log_weights + log_qs).logsumexp(0) - log_qs[k]
        rest = model.log_prior_s(z) + z[3] - log_normal(z[3], loc[3], scale[3])
        terms.append(log_weights[k].exp() * (model.log_likelihood(model.x @ z[:3], z) + rest - kl - excess))
    return torch.stack(terms).sum()


def dropout_elbo(model, p, normals, uniforms, rate=0.25):
    """Inputs dropped per data point in the product; the prior of w at one more draw of dropped rows."""
    terms = []
    for u in uniforms:
        keep = (u >= rate) / (1 - rate)
        z = torch.cat([p["loc"][:3] * keep[:3], p["loc"][3:]])
        f = (model.x * keep[3:].view(-1, 3)) @ p["loc"][:3]
        terms.append(model.log_likelihood(f, z) + model.log_prior_w(z) + model.log_prior_s(z) + z[3])
    return torch.stack(terms).mean()


# One row per case: family, its options, options of the objective, particles, reference, and how many normals and uniforms a
# particle takes for N data points.
CASES = {
    "map": ("map", {}, {}, 1, map_elbo, lambda n: (0, 0)),
    "laplace": ("laplace", {}, {}, 1, laplace_elbo, lambda n: (0, 0)),
    "ensemble": ("ensemble", {"members": 3}, {}, 3, ensemble_elbo, lambda n: (0, 0)),
    "dropout": ("dropout", {"rate": 0.25}, {"num_particles": 2}, 2, dropout_elbo, lambda n: (0, 3 + 3 * n)),
    "full_rank": ("full_rank", {}, {"num_particles": 2}, 2, full_rank_elbo, lambda n: (4, 0)),
    "low_rank": ("low_rank", {"rank": 2}, {"num_particles": 2}, 2, low_rank_elbo, lambda n: (6, 0)),
    "mixture": ("mixture", {"components": 3}, {}, 3, mixture_elbo, lambda n: (4, 0)),
    "structured": ("structured", {"sites": {"w": "full_rank"}}, {"num_particles": 2}, 2, structured_elbo, lambda n: (4, 0)),
    "mean_field": ("mean_field", {}, {"num_particles": 2}, 2, mean_field_closed_form, lambda n: (4, 0)),
    "mean_field, Monte Carlo KL": ("mean_field", {}, {"kl": "monte_carlo"}, 1, mean_field_monte_carlo, lambda n: (4, 0)),
    "mean_field, local": ("mean_field", {"estimator": "local"}, {}, 1, mean_field_local, lambda n: (4 + n, 0)),
    "mean_field, flipout": ("mean_field", {"estimator": "flipout"}, {}, 1, mean_field_flipout, lambda n: (4, 4 * n)),
}
