"""The steps of a run, as Snakemake itself plans them."""

import os
from dataclasses import replace
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.dag import DAG
from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

from clue.benchmark.errors import BenchmarkError, one_line
from clue.benchmark.running.cluster import CHECKOUT
from clue.benchmark.running.status import Step


def planned_steps(config: Path, cluster: bool) -> list[Step]:
    """Return the steps of a run in the current folder, finished or not, each after those that it depends on.

    Parameters
    ----------
    config
        The run's configuration.
    cluster
        Whether jobs run on other machines. Otherwise methods whose software this one lacks have no steps.

    Raises
    ------
    BenchmarkError
        If Snakemake cannot plan the run.
    """
    environment = dict(os.environ)
    output = OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False)
    try:
        with SnakemakeApi(output) as api:
            workflow = api.workflow(
                ResourceSettings(nodes=1) if cluster else ResourceSettings(cores=os.cpu_count()),
                config_settings=ConfigSettings(configfiles=[config]),
                snakefile=CHECKOUT / "Snakefile",
            )
            # A dry run asks for no lock, so that it can be made beside a run.
            workflow.dag(DAGSettings(force_incomplete=True)).execute_workflow(executor="dryrun")
            graph = workflow._workflow.dag  # no public function gives it
            levels = [[job for job in level if job.output] for level in graph.toposorted()]
            return [step for level in levels for step in sorted(_planned(job, graph) for job in level)]
    except WorkflowError as error:
        raise BenchmarkError(one_line(str(error))) from error
    except Exception as error:  # a rule of one's own may raise anything
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise BenchmarkError(f"{reason}; `snakemake --dry-run --configfile {config}` says where") from error
    finally:
        os.environ.clear()  # of what rules/common.smk sets for jobs
        os.environ.update(environment)


def _planned(job: Job, graph: DAG) -> Step:
    waits = any(graph.needrun(earlier) for earlier in graph.dependencies[job])
    return replace(step_of(job), is_due=graph.needrun(job), is_ready=not waits)


def step_of(job: Job) -> Step:
    """Return a job of Snakemake as a step that is due."""
    return Step(job.rule.name, tuple(job.wildcards), job.output[0], job.log[0])
