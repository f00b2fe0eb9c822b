"""How a run begins, which failed jobs are tried again, and how a run with failures ends. This file has no rules."""

import dataclasses
import shlex

from snakemake.api import SnakemakeApi
from snakemake.exceptions import RuleException
from snakemake.jobs import Job
from snakemake.scheduling.greedy import SchedulerSettings

from clue.benchmark.running.cluster import refusal
from clue.benchmark.running.machine import require_gpu, require_slurm
from clue.benchmark.running.recovery import register_run
from clue.benchmark.running.status import Standing, failures, has_explained, failure_reason
from clue.benchmark.running.steps import step_of


onstart:
    begin_run()


onerror:
    end_run()


def begin_run():
    """Refuse to run if a killed run has left jobs in Slurm's queue, or if something is missing that all jobs need."""
    if FINISHING:
        return
    try:
        if workflow.executor_plugin.name == "slurm":
            require_slurm()
            check_requests()
        if workflow.local_exec and BENCHMARK.config["device"] == "cuda":
            # Finished results can be drawn without a GPU.
            if any(job.resources.get("gpu") for job in workflow.dag.needrun_jobs()):
                require_gpu()
        register_run(Path.cwd())
    except BenchmarkError as error:
        raise WorkflowError(str(error)) from None
    print(f"{sum(bool(job.output) for job in workflow.dag.jobs)} steps in all", flush=True)  # for `make run`


def check_requests():
    """Ask Slurm about each distinct request before any job is submitted, by a trial of the plugin's own command."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    submitter = workflow.scheduler._executor
    requests = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            requests.setdefault((job.rule.name, str(job.resources)), job)
    lines = []
    for job in requests.values():
        where = {"account": next(submitter.get_account_arg(job)), "partition": submitter.get_partition_arg(job)}
        where |= {"run_uuid": "test", "slurm_logfile": os.devnull, "comment_str": job.rule.name, "workdir": ""}
        command = get_submit_command(job, where, settings=workflow.executor_settings) + set_gres_string(job)
        options = [word for word in shlex.split(command)[1:] if word != "--parsable"]
        if reason := refusal(options):
            asked = {name: job.resources.get(name, 0) for name in ("mem_mb", "runtime", "gpu", "_cores")}
            told = " ".join(f"{name.strip('_')}={value}" for name, value in asked.items())
            lines.append(f"{job.rule.name}: Slurm refuses {told}{where['partition']}: {reason}; {where_to_change(job)}")
    if lines:
        raise BenchmarkError("\n".join(sorted(lines)))


def where_to_change(job):
    """Return where to change the resources of a job."""
    if job.rule.name in BENCHMARK.methods:
        return f"change resources in config/methods/{job.rule.name}.yaml, or {SITE.file}"
    if job.rule.name == "prepare" or job.rule.name.startswith("task_"):
        return f"change resources in config/datasets/{job.wildcards.dataset}.yaml, or {SITE.file}"
    return f"give --set-resources {job.rule.name}:mem_mb=…, or change {SITE.file}"


def tries_left(job, allowed=Job.restart_times.fget):
    """Return how often a job may be tried again: not at all after an error that it has explained itself.

    A job that was killed, for instance for its memory or time, gets more of both. An error of the method or its input
    would only occur again.
    """
    ours = Path(job.rule.snakefile).is_relative_to(ROOT)  # not jobs of a workflow that uses this one as a module
    return 0 if ours and has_explained(job.output, job.log) else allowed(job)


# Snakemake asks each job after each failure, but a rule can only give one number for all failures.
Job.restart_times = property(tries_left)


def end_run():
    """After failures, collect, draw and report what exists. Then name each failed job, the reason, and how to go on."""
    if FINISHING:
        return
    ended = workflow  # Snakemake and all Snakefiles use this name for the newest workflow
    # An interrupted run leaves jobs at work, and ends at once.
    if ended.scheduler.failed and not ended.scheduler.running:
        if any(job.rule.name == "collect" for job in ended.dag.jobs):
            invalidate_old_scores(ended.dag)
            collect_and_draw(ended)
    failed = {*ended.scheduler.failed, *(workflow.scheduler.failed if workflow.scheduler else ())}
    steps = {step_of(job) for job in failed}
    lines = sorted(failures([Standing(step, "failed", failure_reason(step, Path.cwd())) for step in steps]))
    lines.append("Finished jobs are kept and training resumes from its checkpoint: start the same command again.")
    print("\n".join(["", *lines]), file=sys.stderr)


def invalidate_old_scores(dag):
    """Let scores that should have been made again, but were not, be older than their embedding: none is collected."""
    for job in dag.needrun_jobs():  # and are not finished
        for path in map(Path, job.output):
            if path.name == "metrics.tsv" and path.exists():
                os.utime(path, (0, 0))


def collect_and_draw(ended):
    """Run the rules after scoring on what exists. If figures cannot be drawn, run them once more without those."""
    targets = set(ended.dag_settings.targets)
    figure_rules = {rule.name for rule in ended.rules if Path(rule.snakefile).name == "figures.smk"}
    if not any(job.is_scored() for job in JOBS if job.method != ORACLE):
        print("\nNo method has scores: there is nothing to draw.", file=sys.stderr)
        targets = {"table"}
    for stage in ("tables", "report"):
        os.environ.update(CLUE_BENCH_FINISHING=stage)
        try:
            return run_rules({"all", "table", "collect"} | figure_rules, targets, ended)
        except (WorkflowError, RuleException) as error:
            print(error, file=sys.stderr)


def run_rules(allowed, targets, ended):
    """Run some rules, but none that they depend on, with the settings of the whole run.

    The settings are those of the workflow that has ended. Its command line could not be repeated, since its paths are
    relative to the folder from which Snakemake has changed to the working directory.
    """
    same = lambda *names: {f"{name}_settings": getattr(ended, f"{name}_settings") for name in names}
    with SnakemakeApi(ended.output_settings) as api:
        again = api.workflow(
            snakefile=ended.main_snakefile,
            **same("resource", "config", "storage", "workflow", "deployment", "storage_provider"),
        )
        # No file that Snakemake knows holds the reasons of failures, so collect is forced.
        failed = any(not job.is_scored() for job in JOBS if not job.reason)
        chosen = {"targets": targets, "allowed_rules": allowed, "forcerun": {"collect"} if failed else set()}
        dag = again.dag(dataclasses.replace(ended.dag_settings, **chosen))
        dag.execute_workflow(
            executor=ended.executor_plugin.name,
            execution_settings=dataclasses.replace(ended.execution_settings, lock=False, keep_going=True),
            scheduling_settings=dataclasses.replace(ended.scheduling_settings, scheduler="greedy"),
            scheduler_settings=SchedulerSettings(),
            **same("executor", "remote_execution", "group"),
        )
