"""One rule per selected method, made from config/methods/<name>.yaml; its name is the method's."""

for method, spec in BENCHMARK.methods.items():
    tasks, nodes = spec["resources"]["tasks"], spec["resources"]["nodes"]
    gpus = BENCHMARK.gpus(method)

    rule:
        name:
            method
        input:
            train=f"{TASK}/train.h5mu",
            tests=lambda wildcards: test_files(modalities(wildcards.dataset)),
        output:
            embedding=f"{TASK}/{method}/{{variant}}/seed-{{seed}}/embedding.h5ad",
            run=f"{TASK}/{method}/{{variant}}/seed-{{seed}}/run.json",
        log:
            f"{LOGS}/{{dataset}}/{{split}}/{method}/{{variant}}/seed-{{seed}}.log",
        benchmark:
            f"{LOGS}/{{dataset}}/{{split}}/{method}/{{variant}}/seed-{{seed}}.benchmark.tsv"
        wildcard_constraints:
            variant="|".join(spec["variants"]),
        conda:
            f"../envs/{spec['env']}.yaml"
        container:
            of_checkout(f"envs/{spec['env']}.sif")
        threads: spec["resources"]["threads"]
        resources:
            mem_mb=memory(int(1000 * spec["resources"]["mem_gb"]), gpu=gpus),
            runtime=minutes(spec["resources"]["runtime_min"], gpu=gpus),
            gpu=gpus,
            # Several tasks: the job's shell calls srun itself, which `mpi` tells the Slurm plugin. None is no resource.
            mpi="srun" if tasks > 1 else None,
            tasks=tasks if tasks > 1 else None,
            nodes=nodes if tasks > 1 else None,
            tasks_per_gpu=0 if tasks > 1 else None,
        params:
            method=method,
            script=f"scripts/methods/{spec['script']}",
            device="cuda" if gpus else "cpu",
            values=lambda wildcards, method=method: params_json(method, wildcards.variant, wildcards.dataset),
            code=method_code(spec),
            tasks=tasks,  # results depend on it: another number re-runs the method; of what follows none does
            together=lambda wildcards, threads, resources, tasks=tasks: together(tasks, threads, resources),
        # -P: a method's program must not shadow the library of its name (clue.py, the package clue).
        # No f-string: it would be filled in when a job starts, with the values of the last method.
        shell:
            "{params.together}python -P $CLUE_CHECKOUT/{params.script} --train {input.train} --tests {input.tests} --embedding {output.embedding}"
            " --method {params.method} --variant {wildcards.variant} --seed {wildcards.seed}"
            " --params {params.values:q} --device {params.device} --threads {threads} > {log} 2>&1"


for path in sorted(ROOT.glob("rules/methods/*.smk")):

    include: str(path)
