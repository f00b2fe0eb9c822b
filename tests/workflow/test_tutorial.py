"""The tutorial on adding a method, on one small data set."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tutorial_adds_a_method(fresh):
    text = (ROOT / "docs/tutorials/add_method.py").read_text()
    smaller = {
        'shell("make check-method NAME=pls", 1)\n': "",
        "make run CONFIG=config/pls.yaml": f"{sys.executable} -m snakemake --configfile config/pls.yaml --cores 2"
        " results/pls/figures/comparison.png",
        "pbmc_multiome/random30, ": "",
        "pls/more, cca/default, ": "",
        "[0, 1, 2]": "[0]",
    }
    for whole, part in smaller.items():
        assert whole in text
        text = text.replace(whole, part)
    fresh.path("tutorial.py").write_text(text)
    fresh.environment["MPLBACKEND"] = "Agg"
    status, output = fresh.call("tutorial.py")
    assert status == 0, output
    scores = {name: float(score) for name, score in re.findall(r"Simulated +(\w+) +([\d.]+) ", output)}
    assert scores["PLS"] > 10 * scores["Random"], "the table names the methods with their scores"
    assert not fresh.path("config/methods/pls.yaml").exists()
