"""Shared by all rules: the checked configuration, the planned grid, paths and content digests."""

import functools
import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The checkout holds programs and settings; data and results are in the working directory. This is not workflow.basedir,
# which is another workflow's folder if that workflow uses this one as a module.
ROOT = Path(workflow.current_basedir).parent
sys.path.insert(0, str(ROOT))

from clue.benchmark.running.cluster import read_site
from clue.benchmark.config import ORACLE, Benchmark, read_yaml
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import imported
from clue.benchmark.running.machine import unavailable
from clue.benchmark.data.sources import MANIFEST, has_files, sources

# Paths are relative if the working directory is the checkout, so that moving it does not re-run anything.
CHECKOUT = "." if ROOT.samefile(Path.cwd()) else str(ROOT)
if " " in CHECKOUT:
    raise WorkflowError(f"{ROOT}: has a space, so that it works as the working directory only; rename it")

# Jobs use the Python that runs Snakemake, and this checkout's clue, whether or not an environment is activated. A conda
# environment is activated later and takes precedence. scripts/run.py knows the jobs of a killed run by the folder.
os.environ.update(
    CLUE_BENCH_FOLDER=os.getcwd(),
    CLUE_CHECKOUT=CHECKOUT,
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    PYTHONPATH=str(ROOT),
    PYTHONUTF8="1",  # files are UTF-8, whatever the locale
)
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

try:
    SITE = read_site()
    for path in workflow.configfiles:
        read_yaml(Path(path))  # refuses duplicate keys; Snakemake has kept only the last one
    BENCHMARK = Benchmark(config, ROOT, " ".join(map(str, workflow.configfiles)) or "config")
    # Jobs in other environments, or submitted to other machines (`--jobs`), check this for themselves.
    if workflow.resource_settings.nodes is None and not workflow.deployment_settings.deployment_method:
        BENCHMARK.unavailable = unavailable(BENCHMARK.methods)
    RAW = {name: f"data/raw/{name}/{MANIFEST}" for name, spec in BENCHMARK.datasets.items() if has_files(spec)}
except BenchmarkError as error:
    raise WorkflowError(str(error)) from None

RUN = BENCHMARK.config["run"]
MIRROR = BENCHMARK.config["data_mirror"]
JOBS = BENCHMARK.plan()
MODALITY_SETS = sorted({tuple(spec["modalities"]) for spec in BENCHMARK.datasets.values()})

# Prepared data belong to no run, since the cells of a run are chosen when a data set is split.
PREPARED = "results/prepared/{dataset}.h5mu"
RESULTS = f"results/{RUN}"
LOGS = f"logs/{RUN}"
TASK = f"{RESULTS}/{{dataset}}/{{split}}"
JOB = f"{TASK}/{{method}}/{{variant}}/seed-{{seed}}"
TABLE = f"{RESULTS}/metrics.tsv"

# Set by rules/run.smk after jobs have failed: only existing results are collected, drawn and reported then.
FINISHING = os.environ.get("CLUE_BENCH_FINISHING", "")
RUNNABLE = [job for job in JOBS if not job.reason and (job.is_scored() or not FINISHING)]

FEATURES = BENCHMARK.all_features()

# Categories in `snakemake --report` for figures and tables that do not show scores.
CATEGORIES = {"integration": "Embeddings", "factors": "Embeddings"}
CATEGORIES |= dict.fromkeys(["learning", "resources"], "Time and memory")


wildcard_constraints:
    dataset="|".join(BENCHMARK.datasets),
    split="|".join(sorted({job.split for job in JOBS})),
    method="|".join(sorted({job.method for job in JOBS})),
    variant="|".join(sorted({job.variant for job in JOBS})),
    seed="[0-9]+",
    features="|".join(FEATURES),


def checkout_path(path):
    """Return the path of a file of the checkout."""
    return os.path.normpath(f"{CHECKOUT}/{path}")


def modalities(dataset):
    """Return the modalities of a data set."""
    return BENCHMARK.datasets[dataset]["modalities"]


def datasets_with(wanted):
    """Return a wildcard constraint: the data sets that have exactly these modalities."""
    return "|".join(name for name in BENCHMARK.datasets if tuple(modalities(name)) == wanted)


def test_files(wanted):
    """Return the patterns of the censored test files of these modalities."""
    return [f"{TASK}/test_{modality}.h5ad" for modality in wanted]


def match_files(folder, wanted):
    """Return the match matrices in the folder of a job: both directions of each pair of modalities."""
    return [
        f"{folder}/match_{source}2{target}.npz"
        for pair in itertools.combinations(wanted, 2)
        for source, target in (pair, pair[::-1])
    ]


def predicts(method):
    """Return whether a method returns predictions beside its embedding."""
    return method != ORACLE and BENCHMARK.methods[method]["predicts"]


def features_of(method, wildcards):
    """Return the files of encoder inputs that a job shares with others."""
    names = BENCHMARK.features(wildcards.dataset, method, wildcards.variant, int(wildcards.seed))
    return [f"{TASK}/features/{name}.npz".format(**wildcards) for name in names]


def outputs_of(method):
    """Return the patterns of the files that a method's program writes; the embedding is the first."""
    folder = f"{TASK}/{method}/{{variant}}/seed-{{seed}}"
    found = {"embedding": f"{folder}/embedding.h5ad", "run": f"{folder}/run.json"}
    return found | ({"predictions": f"{folder}/predictions.npz"} if predicts(method) else {})


def params_of(method, wildcards):
    """Return the hyper-parameters of a job."""
    return BENCHMARK.params(method, wildcards.variant, modalities(wildcards.dataset))


@functools.cache
def params_json(method, variant, dataset):
    """Return the hyper-parameters of a variant as JSON; cached, since they are the same for thousands of seeds."""
    return to_json(BENCHMARK.job_params(method, variant, modalities(dataset)))


def memory(megabytes, gpu=0):
    """Return the memory of a job. It doubles with every further attempt, up to what the site has."""
    return _growing(megabytes, SITE.most("max_mem_mb", gpu))


def minutes(number, gpu=0):
    """Return the time of a job. It doubles with every further attempt, up to what the site allows."""
    return _growing(number, SITE.most("max_runtime", gpu))


def memory_of_data(wildcards, attempt):
    """Return the memory that preparing or splitting a data set takes."""
    return memory(1000 * BENCHMARK.datasets[wildcards.dataset]["resources"]["mem_gb"])(wildcards, attempt)


def minutes_of_data(wildcards, attempt):
    """Return the time that preparing or splitting a data set takes."""
    return minutes(BENCHMARK.datasets[wildcards.dataset]["resources"]["runtime_min"])(wildcards, attempt)


def _growing(amount, most):
    # A request that exceeds the site's limit from the start is left for Slurm to refuse.
    return lambda wildcards, attempt: int(min(amount * 2 ** (attempt - 1), max(most, amount)))


def resources_of(method):
    """Return the resources of a method's jobs from its YAML."""
    wanted, gpus = BENCHMARK.methods[method]["resources"], BENCHMARK.gpus(method)
    return {
        "mem_mb": memory(int(1000 * wanted["mem_gb"]), gpu=gpus),
        "runtime": minutes(wanted["runtime_min"], gpu=gpus),
        "gpu": gpus,
    }


def to_json(value):
    """Return a value as JSON for a parameter of a rule; equal values give equal JSON."""
    return json.dumps(value, sort_keys=True)


def digest(*patterns):
    """Return a digest of the contents of program files.

    As a parameter of a rule, it re-runs the rule after an edit, but not after a fresh checkout (new times, same
    contents).
    """
    files = sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()})
    contents = hashlib.sha256()
    for path in files:
        contents.update(f"{path.relative_to(ROOT)}\n".encode())
        contents.update(path.read_bytes())
    return contents.hexdigest()[:16]


def method_code(spec):
    """Return the digest of a method's program, of the modules that it imports, and of the files that its YAML names."""
    missing = [pattern for pattern in spec["sources"] if not any(ROOT.glob(pattern))]
    if missing:
        raise WorkflowError(f"config/methods: sources of {spec['script']}: no file matches {missing}")
    return digest(*imported(f"scripts/methods/{spec['script']}", ROOT), *spec["sources"])


def is_available(path):
    """Return whether a file may be requested: any file or, once jobs have failed, only an existing one."""
    return Path(path).exists() or not FINISHING


def has_one_space(job):
    """Return whether a job places all modalities in one space; a job that ran by pairs has a space for each pair."""
    return not BENCHMARK.is_by_pairs(job.method, modalities(job.dataset))


def umap_embeddings(dataset, split):
    """Return the embeddings of a split's UMAPs: first seeds of default variants, and `random` only if it is alone."""
    first = {}
    for job in filter(has_one_space, RUNNABLE):
        if (job.dataset, job.split, job.variant) == (dataset, split, "default"):
            first.setdefault(job.method, f"{job.folder}/embedding.h5ad")
    methods = {method: path for method, path in first.items() if method not in ("random", ORACLE)}
    return list((methods or {method: first[method] for method in first if method == "random"}).values())


def solution(dataset, split):
    """Return the path of a split's solution."""
    return f"{RESULTS}/{dataset}/{split}/solution.h5ad"


def in_report(path, name, category="Scores"):
    """Mark a figure or table for `snakemake --report`, with the caption of its name."""
    return report(path, caption=f"captions/{name}.rst", category=CATEGORIES.get(name, category))


def figure_code(*patterns):
    """Return the digest of all that decides how a figure looks; labels are in the YAMLs of methods and data sets."""
    shared = ["clue/benchmark/report/style.py", "clue/benchmark/report/tables.py", "clue/benchmark/scores/stats.py"]
    return digest(*patterns, *shared, "config/display.yaml", "config/methods/*.yaml", "config/datasets/*.yaml")
