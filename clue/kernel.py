"""The likelihood of decoded counts and its derivatives in single precision, compiled for the processor.

A decoded row (one pass, one cell) of 30,000 features takes 120 kB. Operations on whole tensors make some 25 passes over
such rows. This module makes four, each over one row while it is in the processor's cache. `exp` and `log` are short
polynomials, which the compiler vectorises. `clue.likelihood` has the formulas and their notation, and the same
computation for GPUs and for double precision.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy import float32, float64, int32

from clue.compiled import EXACT, SUMS, compiled

EPSILON = 1e-7
"""Added to the mean, as in the authors' code, so that the logarithm of a zero mean is finite."""

ZERO, HALF, ONE = float32(0), float32(0.5), float32(1)

# ---- sparse products -----------------------------------------------------------------------------


@compiled(*SUMS, cache=True)
def rows_by_weight(start, feature, value, weight, product):
    """Write the product of a compressed sparse row matrix and the transpose of `weight`, (n_outputs, n_features)."""
    for cell in range(len(product)):
        for k in range(len(weight)):
            total = ZERO
            for i in range(start[cell], start[cell + 1]):
                total += value[i] * weight[k, feature[i]]
            product[cell, k] = total


@compiled(*EXACT, cache=True)
def slopes_by_rows(start, feature, value, slope, product):
    """Add the product of the transpose of `slope`, (n_cells, n_outputs), and a compressed sparse row matrix."""
    for cell in range(len(slope)):
        for k in range(len(product)):
            for i in range(start[cell], start[cell + 1]):
                product[k, feature[i]] += slope[cell, k] * value[i]


# ---- exponential and logarithm -------------------------------------------------------------------

LOG2_E = float32(1 / math.log(2))
LN2 = float32(0.693359375)
LN2_REST = float32(math.log(2) - 0.693359375)
"""log 2 in two parts. The first has few digits, so that its product with an exponent is exact."""

EXP = tuple(float32(c) for c in (0.49999993, 0.16666515, 0.041668456, 0.0083694107, 0.0013813161))
"""(eʳ − 1 − r) / r² for |r| ≤ 0.35 in ascending powers of r, fitted to minimise the largest relative error in eʳ."""

LOG = tuple(
    float32(c)
    for c in (0.33333331, -0.25000855, 0.2000136, -0.16622167, 0.14197604, -0.13168193, 0.12796738, -0.0765777)
)
"""(log(1 + f) − f + f² / 2) / f³ for √½ ≤ 1 + f ≤ √2, fitted likewise."""

LEAST, MOST = float32(-150), float32(150)
"""At these x, eˣ is 0 and infinite. x is clipped to them, so that the exponent of 2 stays in its range."""

SQRT_HALF = int(float32(0.5**0.5).view(int32))
"""The bits of √½. Subtract them from the bits of y and drop the 23 bits of the mantissa: the rest is the exponent of
the power of 2 nearest to y."""


@compiled(*EXACT)
def _power_of_2(k):
    """Return 2ᵏ for −127 < k < 128."""
    return int32((k + 127) << 23).view(float32)


@compiled(*EXACT)
def _polynomial(coefficients, x):
    total = coefficients[-1]
    for i in range(2, len(coefficients) + 1):
        total = total * x + coefficients[-i]
    return total


@compiled(*EXACT)
def exp(x):
    """Return eˣ = 2ᵏ eʳ, with the integer k nearest to x / log 2."""
    x = LEAST if x < LEAST else x
    x = MOST if x > MOST else x
    exponent = np.rint(x * LOG2_E)
    r = (x - exponent * LN2) - exponent * LN2_REST
    k = int32(exponent)
    # two factors, since 2ᵏ alone may underflow or overflow
    return ((_polynomial(EXP, r) * r) * r + r + ONE) * _power_of_2(k >> 1) * _power_of_2(k - (k >> 1))


@compiled(*EXACT)
def log_of_sum(c, x):
    """Return log(c + x) = k log 2 + log(1 + f) for c = 0 or 1 and a positive sum; log(1 + x) keeps the digits of x."""
    k = int32(float32(c + x).view(int32) - SQRT_HALF >> 23)
    a, b = _power_of_2(-(k >> 1)), _power_of_2((k >> 1) - k)
    # for k = 0, f is x itself
    f = (x * a) * b + ((c * a) * b - ONE)
    square, exponent = f * f, float32(k)
    rest = (_polynomial(LOG, f) * f) * square + exponent * LN2_REST - HALF * square
    return (f + rest) + exponent * LN2


# ---- the contribution of a count -----------------------------------------------------------------

FEW = 16
"""Up to this count, the difference of gamma functions is computed as a product."""


@compiled()
def _digamma(x):
    """Return the derivative of lgamma, from its asymptotic series."""
    total = 0.0
    while x < 8:
        total -= 1 / x
        x += 1
    s = 1 / (x * x)
    return total + math.log(x) - 0.5 / x - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))


@compiled()
def gamma_difference(x, theta):
    """Return lgamma(x + θ) − lgamma(θ) − x log θ, and θ times its derivative with respect to θ, in double precision.

    For a whole number x, these are log Π (1 + i / θ) and −Σ i / (θ + i) over 0 < i < x.
    """
    if x <= FEW and x == math.floor(x) and theta > 1e-15:
        product, slope = 1.0, 0.0
        for i in range(1, int(x)):
            product *= 1 + i / theta
            slope -= i / (theta + i)
        return math.log(product), slope
    value = math.lgamma(x + theta) - math.lgamma(theta) - x * math.log(theta)
    return value, theta * (_digamma(x + theta) - _digamma(theta)) - x


@compiled()
def _at_counts(feature, value, theta, gamma, digamma, theta_x):
    """Write `gamma_difference` of a cell's counts, and θ at their features; both are the same in every pass."""
    for i in range(len(value)):
        theta_x[i] = theta[feature[i]]
        if value[i] == ONE:
            gamma[i] = digamma[i] = ZERO
        else:
            gamma[i], digamma[i] = gamma_difference(float64(value[i]), float64(theta_x[i]))


# ---- passes over a row ---------------------------------------------------------------------------


@compiled(*EXACT)
def _in_order(bits):
    """Map the bits of a number to an integer with the same order; the function is its own inverse."""
    return int32(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@compiled(*EXACT)
def _logits(loc, scale, shift, logit):
    """Write scale · loc + shift; return the largest value."""
    # Compare integers, since the compiler does not vectorise the maximum of floating-point numbers.
    largest = int32(-(2**31))
    for i in range(len(loc)):
        logit[i] = loc[i] * scale[i] + shift[i]
        position = _in_order(float32(logit[i]).view(int32))
        largest = position if position > largest else largest
    return int32(_in_order(largest)).view(float32)


@compiled(*SUMS)
def _exponentials(logit, largest):
    """Replace logits by exp(logit − largest), the softmax before division; return their sum, the divisor."""
    total = ZERO
    for i in range(len(logit)):
        logit[i] = exp(logit[i] - largest)
        total += logit[i]
    return total


@compiled(*SUMS)
def _zeros(weight, per_weight, theta, inverse_theta, inverse, grad_log_theta):
    """Sum the log-likelihood as if all counts were zero, −Σ θ log(1 + q); add its derivatives with respect to log θ.

    Write 1 / (1 + q) to `inverse`. Return the sum, and Σ weight / (1 + q), which `_sweep` needs for the softmax.
    """
    value = slope = ZERO
    for i in range(len(weight)):
        q = (weight[i] * per_weight + float32(EPSILON)) * inverse_theta[i]
        inverse[i] = ONE / (ONE + q)
        log1p_q = log_of_sum(ONE, q)
        value -= theta[i] * log1p_q
        slope += weight[i] * inverse[i]
        # subtract before summing: both are nearly q where θ is large
        grad_log_theta[i] -= theta[i] * (log1p_q - q * inverse[i])
    return value, slope


@compiled(*SUMS)
def _nonzeros(feature, value, gamma, digamma, theta_x, weight, per_weight, slope_x, grad_x):
    """Return the contributions of the non-zero counts to the two sums of `_zeros`.

    Write to `slope_x` the amount each count subtracts from `inverse`, and to `grad_x` its derivative with respect to
    log θ.
    """
    total = slope = ZERO
    for i in range(len(value)):
        slope_x[i] = weight[feature[i]]
    # no look-ups in this loop, so that it is vectorised too
    for i in range(len(value)):
        mean = slope_x[i] * per_weight + float32(EPSILON)
        both = ONE / (theta_x[i] + mean)
        grad_x[i] = value[i] * mean * both + digamma[i]
        # log m − log(1 + q)
        total += value[i] * log_of_sum(ZERO, mean * theta_x[i] * both) + gamma[i]
        ratio = value[i] * theta_x[i] * both / mean
        slope -= slope_x[i] * ratio
        slope_x[i] = ratio
    return total, slope


@compiled(*EXACT)
def _add_nonzeros(feature, slope_x, grad_x, inverse, grad_log_theta):
    """Add the derivatives from `_nonzeros` at their features; a feature may occur twice."""
    for i in range(len(feature)):
        inverse[feature[i]] -= slope_x[i]
        grad_log_theta[feature[i]] += grad_x[i]


@compiled(*SUMS)
def _gradients(loc, weight, inverse, factor, mean_slope, scale, grad_scale, grad_shift):
    """Add to the gradients of scale and shift, and replace `loc` by its gradient."""
    # two loops, for which the compiler can check at run time that no array overlaps another
    for i in range(len(loc)):
        inverse[i] = factor * weight[i] * (inverse[i] - mean_slope)
        grad_shift[i] += inverse[i]
    for i in range(len(loc)):
        grad_scale[i] += inverse[i] * loc[i]
        loc[i] = inverse[i] * scale[i]


@compiled(cache=True)
def _sweep(
    loc, library, batch, parameters, start, feature, value, run, likelihood, grad_library, gradients, differentiate
):
    """Do the work of `sweep` for the cells of neighbouring runs; run i is cells `run[i]` to `run[i + 1]`."""
    n = 0
    for cell in range(run[0], run[-1]):
        n = max(n, start[cell + 1] - start[cell])
    # separate arrays, not parts of one, so that the compiler knows that they do not overlap
    gamma, digamma, theta_x = np.empty(n, float32), np.empty(n, float32), np.empty(n, float32)
    slope_x, grad_x = np.empty(n, float32), np.empty(n, float32)
    weight, inverse = np.empty(loc.shape[2], float32), np.empty(loc.shape[2], float32)
    for i in range(len(run) - 1):
        own = parameters[batch[run[i]]]
        scale, shift, theta, inverse_theta = own[0], own[1], own[2], own[3]
        for cell in range(run[i], run[i + 1]):
            f, x = feature[start[cell] : start[cell + 1]], value[start[cell] : start[cell + 1]]
            _at_counts(f, x, theta, gamma, digamma, theta_x)
            for p in range(len(loc)):
                row, gradient = loc[p, cell], gradients[i, p]
                total = _exponentials(weight, _logits(row, scale, shift, weight))
                per_weight = library[p, cell] / total
                value_0, slope_0 = _zeros(weight, per_weight, theta, inverse_theta, inverse, gradient[2])
                value_x, sum_x = _nonzeros(f, x, gamma, digamma, theta_x, weight, per_weight, slope_x, grad_x)
                likelihood[p, cell] = value_0 + value_x
                if differentiate:
                    _add_nonzeros(f, slope_x, grad_x, inverse, gradient[2])
                    mean_slope = (slope_0 + sum_x) / total
                    grad_library[p, cell] = -mean_slope
                    _gradients(row, weight, inverse, -per_weight, mean_slope, scale, gradient[0], gradient[1])


def sweep(
    loc: np.ndarray,
    library: np.ndarray,
    batch: np.ndarray,
    parameters: np.ndarray,
    start: np.ndarray,
    feature: np.ndarray,
    value: np.ndarray,
    *,
    differentiate: bool,
    n_threads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the log-likelihood of each pass and cell and its gradients; the gradient of `loc` replaces `loc`.

    Parameters
    ----------
    loc
        The last layer's product, float32, shape (n_passes, n_cells, n_features).
    library
        Library size of each pass and cell, float32, shape (n_passes, n_cells).
    batch
        Batch of each cell, shape (n_cells,).
    parameters
        Scale, shift, θ and 1 / θ of each batch, float32, shape (n_batches, 4, n_features). The softmax reads
        scale · loc + shift.
    start, feature, value
        The cells' non-zero counts as the three arrays of a compressed sparse row matrix; counts are float32.
    differentiate
        Whether to compute gradients. If not, the returned gradients are meaningless and `loc` keeps its values.
    n_threads
        Number of threads that share the cells; it affects sums over cells through rounding.

    Returns
    -------
    Log-likelihoods and the gradient of `library`, each of shape (n_passes, n_cells); the gradients of scale, shift and
    log θ, summed over each run of neighbouring cells of one batch, shape (n_runs, n_passes, 3, n_features); and the
    batch of each run, shape (n_runs,).
    """
    n_passes, n_cells, n_features = loc.shape
    shares = np.linspace(0, n_cells, min(n_threads, n_cells) + 1).astype(np.int64)
    run = np.unique(np.concatenate([shares, np.flatnonzero(np.diff(batch)) + 1]))
    gradients = torch.zeros(len(run) - 1, n_passes, 3, n_features)
    likelihood, grad_library = torch.zeros(n_passes, n_cells), torch.zeros(n_passes, n_cells)
    results = likelihood.numpy(), grad_library.numpy()

    def work(first: int, last: int) -> None:
        arrays = (loc, library, batch, parameters, start, feature, value)
        _sweep(*arrays, run[first : last + 1], *results, gradients[first:last].numpy(), differentiate)

    ends = np.searchsorted(run, shares)
    if len(ends) == 2:
        work(*ends)
    else:
        with ThreadPoolExecutor(len(ends) - 1) as threads:
            list(threads.map(work, ends[:-1], ends[1:]))
    return likelihood, grad_library, gradients, torch.from_numpy(batch[run[:-1]])
