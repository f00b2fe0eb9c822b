"""The compiled exponential, logarithm and gamma functions are accurate, and sparse products are correct."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from counts import sparse_counts
from mpmath import mp
from numba import njit

from clue import kernel
from clue.nn import LearnedLibrary

exp, log_of_sum = kernel.exp, kernel.log_of_sum


@njit
def exps(x):
    return np.array([exp(x[i]) for i in range(len(x))])


@njit
def logs(c, x):
    return np.array([log_of_sum(c, x[i]) for i in range(len(x))])


def units(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error in units in the last place of single precision."""
    assert found.dtype == np.float32
    return np.max(np.abs(found - expected) / np.spacing(np.abs(expected).astype(np.float32)))


def spread(low: float, high: float) -> np.ndarray:
    """Return numbers of every magnitude between two positive ones."""
    return np.geomspace(low, high, 200_001).astype(np.float32)


def test_exp():
    x = np.concatenate([-spread(1e-30, 87), [0], spread(1e-30, 88.7), np.linspace(-87, 88.7, 200_001)])
    x = x.astype(np.float32)
    assert units(exps(x), np.exp(x.astype(float))) < 1.5


def test_exp_beyond_the_representable_range():
    x = np.array([-np.inf, -1e30, -104, -95, 89, 1e30, np.inf, np.nan], dtype=np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(exps(x), np.exp(x), atol=1e-44)


@pytest.mark.parametrize(
    ("c", "x", "expected"),
    [
        (1, np.append(spread(1e-44, 3e38), 0), np.log1p),
        (1, np.linspace(0, 10, 200_001), np.log1p),
        (0, spread(1.2e-38, 3e38), np.log),
        (0, np.linspace(0.5, 2, 200_001), np.log),
    ],
)
def test_logarithms(c, x, expected):
    x = x.astype(np.float32)
    assert units(logs(np.float32(c), x), expected(x.astype(float))) < 2


def test_logarithms_of_non_finite_numbers_are_not_finite():
    x = np.array([np.inf, np.nan], dtype=np.float32)
    assert not np.isfinite(logs(np.float32(1), x)).any()


@pytest.mark.parametrize("theta", [1e-20, 1e-6, 0.3, 7.0, 3e3, 2e6])
@pytest.mark.parametrize("x", [1.0, 2.0, 16.0, 17.0, 2.5, 40.5, 5000.0])
def test_gamma_difference(x, theta):
    with mp.workdps(50):
        n, r = mp.mpf(x), mp.mpf(theta)
        value = mp.loggamma(n + r) - mp.loggamma(r) - n * mp.log(r)
        slope = r * (mp.digamma(n + r) - mp.digamma(r)) - n
        value, slope = float(value), float(slope)
    # log(1 + x) of products near 1 and differences of large numbers lose some digits in single precision
    np.testing.assert_allclose(kernel.gamma_difference(x, theta), [value, slope], rtol=1e-5, atol=1e-8)


def test_learned_library_is_a_linear_layer():
    generator = torch.Generator().manual_seed(0)
    dense = torch.poisson(torch.rand(7, 30, generator=generator))
    dense[3] = 0
    library, counts = LearnedLibrary(30, 3), sparse_counts(dense)
    slope = torch.randn(7, 3, generator=generator)
    found, expected = library(counts), library.linear(dense).relu()
    torch.testing.assert_close(found, expected)
    weights = list(library.parameters())
    gradients = (torch.autograd.grad((values * slope).sum(), weights) for values in (found, expected))
    torch.testing.assert_close(*gradients)


def test_without_a_folder_to_write_to():
    code = "from clue import kernel; print(float(kernel.exp(kernel.ONE)))"
    # of the places where numba caches compiled functions, the one only for notebooks
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "_IPythonCacheLocator"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(np.e, rel=1e-6)


def test_compiling_and_loading_processes_compute_the_same(tmp_path):
    code = (
        "import torch; from clue.likelihood import decoded_log_likelihood; from counts import sparse_counts\n"
        "torch.manual_seed(0); torch.set_num_threads(1)\n"
        "counts = sparse_counts((torch.rand(40, 210) * 3).floor())\n"
        "hidden, weight = torch.randn(2, 40, 16, requires_grad=True), torch.randn(17, 210, requires_grad=True)\n"
        "rows = [torch.randn(1, 210, requires_grad=True) for _ in range(3)]\n"
        "library, batch = torch.full((2, 40), 90.0), torch.zeros(40, dtype=torch.long)\n"
        "value = decoded_log_likelihood(hidden, weight, torch.zeros(210), *rows, library, batch, counts)\n"
        "value.sum().backward()\n"
        "found = value.detach(), hidden.grad, weight.grad, *(row.grad for row in rows)\n"
        "print([x.numpy().tobytes().hex() for x in found])"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    words = [sys.executable, "-W", "ignore", "-c", code]
    first, second = (subprocess.check_output(words, env=environment, text=True) for _ in range(2))
    assert list(tmp_path.rglob("*.nbc")) and first == second
