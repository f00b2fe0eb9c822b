"""The benchmark: download, prepare, censor, embed, score, collect, draw.

make run                                          quick, on a laptop
snakemake --cores 4 --configfile config/full.yaml
snakemake --cores 4                               config/config.yaml: on a GPU
snakemake --profile slurm                         the same on a cluster
"""

import gc
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

# The graph of jobs is millions of objects that stay. Looking through them after every 700 new ones would take a quarter
# of the time for planning 10,000 jobs, and would free no memory.
gc.set_threshold(100_000, 50, 100)

# A default under a given config file would add its keys that the given file lacks.
if not workflow.overwrite_configfiles:

    configfile: Path(workflow.current_basedir, "config", "config.yaml")


include: "rules/common.smk"


# Used only with --software-deployment-method apptainer. A method with another environment has its own container.
container: checkout_path("envs/python.sif")


include: "rules/data.smk"
include: "rules/task.smk"
include: "rules/methods.smk"
include: "rules/metrics.smk"
include: "rules/figures.smk"
include: "rules/run.smk"


rule all:
    default_target: True
    input:
        TABLE,
        FIGURES,
        TABLES,
        REPORT,


rule downloaded:
    input:
        list(RAW.values()),


rule prepared:
    input:
        expand(PREPARED, dataset=BENCHMARK.datasets),


rule embeddings:
    input:
        [f"{job.folder}/embedding.h5ad" for job in RUNNABLE],


rule table:
    input:
        TABLE,
