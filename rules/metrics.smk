"""Score each embedding against the solution, and collect the planned grid, including failures, in one table."""


rule oracle:
    input:
        solution=f"{TASK}/solution.h5ad",
    output:
        embedding=f"{TASK}/{ORACLE}/default/seed-0/embedding.h5ad",
    log:
        f"{LOGS}/{{dataset}}/{{split}}/{ORACLE}/default/seed-0.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{split}}/{ORACLE}/default/seed-0.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=minutes(15),
    params:
        code=digest("scripts/oracle.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/oracle.py --solution {input.solution} --embedding {output.embedding}"
        " > {log} 2>&1"


for wanted in MODALITY_SETS:

    rule:
        name:
            f"score_{'_'.join(wanted)}"
        input:
            embedding=f"{JOB}/embedding.h5ad",
            solution=f"{TASK}/solution.h5ad",
            predictions=lambda wildcards: [f"{JOB}/predictions.npz"] if predicts(wildcards.method) else [],
        output:
            matches=match_files(JOB, wanted),
            metrics=f"{JOB}/metrics.tsv",
            cells=f"{JOB}/cells.tsv.gz",
        log:
            f"{LOGS}/{{dataset}}/{{split}}/{{method}}/{{variant}}/seed-{{seed}}.score.log",
        benchmark:
            f"{LOGS}/{{dataset}}/{{split}}/{{method}}/{{variant}}/seed-{{seed}}.score.benchmark.tsv"
        wildcard_constraints:
            dataset=datasets_with(wanted),
        conda:
            "../envs/python.yaml"
        resources:
            mem_mb=memory(4000),
            runtime=minutes(30),
        params:
            run=RUN,
            predictions=lambda wildcards, input: "".join(f"--predictions {path}" for path in input.predictions),
            code=digest(
                "scripts/score.py",
                "clue/matching.py",
                "clue/metrics.py",
                "clue/benchmark/scores/scoring.py",
                "clue/benchmark/scores/prediction.py",
            ),
        shell:
            "python -P $CLUE_CHECKOUT/scripts/score.py --embedding {input.embedding} --solution {input.solution} {params.predictions}"
            " --matches {output.matches} --metrics {output.metrics} --cells {output.cells} --run {params.run} > {log} 2>&1"


rule collect:
    input:
        [f"{job.folder}/metrics.tsv" for job in RUNNABLE],
    output:
        metrics=report(TABLE, category="Scores"),
        resources=report(f"{RESULTS}/resources.tsv", category="Time and memory"),
        failures=report(f"{RESULTS}/failures.tsv", category="Failures"),
    log:
        f"{LOGS}/collect.log",
    benchmark:
        f"{LOGS}/collect.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=minutes(30),
    params:
        config=to_json(BENCHMARK.config),
        unavailable=to_json(BENCHMARK.unavailable),
        plan=to_json([vars(job) for job in JOBS]),
        code=digest("scripts/collect.py", "clue/benchmark/scores/collect.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/collect.py --config {params.config:q} --project $CLUE_CHECKOUT --root . --unavailable {params.unavailable:q}"
        " --metrics {output.metrics}"
        " --resources {output.resources} --failures {output.failures} > {log} 2>&1"
