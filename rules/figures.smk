"""Figures and the pages of the report, drawn from the tidy tables; only the UMAPs read embeddings."""

FIGURE = f"{RESULTS}/figures/{{name}}.png"
TABLE_OF = f"{RESULTS}/tables/{{name}}.tsv"
UMAP_POINTS = 5000
PUBLISHED = expand(
    checkout_path("config/reference/{name}.tsv"),
    name=["leaderboard", "cell_type_match", "organisers", "rebenchmarks", "scmmib"],
)

SPLITS = list(dict.fromkeys((job.dataset, job.split) for job in JOBS if is_available(solution(job.dataset, job.split))))
UMAP_SPLITS = [split for split in SPLITS if umap_embeddings(*split)]

INTEGRATION_POINTS = 4000
RESOURCES = f"{RESULTS}/resources.tsv"
PROBES = f"{RESULTS}/probes.tsv"
# Simulated data sets, whose factors are known.
SIMULATED = [split for split in SPLITS if split[0] not in RAW]

# Figures that differ only in what they read: name -> the options of the program, with their files.
FIGURES_OF_TABLES = {
    "leaderboard": {"metrics": TABLE, "published": PUBLISHED},
    "ablation": {"metrics": TABLE, "reference": checkout_path("config/reference/ablation.tsv")},
    "integration": {"scores": [f"{RESULTS}/{a}/{b}/integration.tsv" for a, b in UMAP_SPLITS]},
    "resources": {"resources": RESOURCES},
    "prediction": {"metrics": TABLE, "published": checkout_path("config/reference/predict_modality.tsv")},
}
if SIMULATED:
    FIGURES_OF_TABLES["factors"] = {"probes": PROBES}
SPECS = [BENCHMARK.datasets[a]["splits"][b] for a, b in SPLITS]
if len({(spec.get("paired_fraction"), spec.get("n_train")) for spec in SPECS}) > 1:
    FIGURES_OF_TABLES["pairing"] = {"metrics": TABLE, "published": PUBLISHED}
# The same for programs that also look into the results of jobs.
FIGURES_OF_JOBS = {"learning": {"resources": RESOURCES}}
REPORT = f"{RESULTS}/report.html"
FIGURES = expand(FIGURE, name=["comparison", *FIGURES_OF_TABLES, *FIGURES_OF_JOBS])
FIGURES += [FIGURE.format(name=f"umap_{a}_{b}") for a, b in UMAP_SPLITS]
TABLES = expand(TABLE_OF, name=["comparison", "summary", "paper", "datasets", *FIGURES_OF_TABLES, *FIGURES_OF_JOBS])
if FINISHING == "report":
    # Figures that could not be drawn do not prevent the report.
    FIGURES, TABLES = list(filter(is_available, FIGURES)), list(filter(is_available, TABLES))


rule figures:
    input:
        FIGURES,
        TABLES,


for name, options in (FIGURES_OF_TABLES | FIGURES_OF_JOBS).items():

    rule:
        name:
            name
        input:
            **options,
        output:
            png=in_report(FIGURE.format(name=name), name),
            pdf=f"{RESULTS}/figures/{name}.pdf",
            table=TABLE_OF.format(name=name),
        log:
            f"{LOGS}/figures/{name}.log",
        benchmark:
            f"{LOGS}/figures/{name}.benchmark.tsv"
        conda:
            "../envs/python.yaml"
        resources:
            mem_mb=memory(2000),
            runtime=minutes(30),
        params:
            script=f"scripts/figures/{name}.py",
            files=lambda wildcards, input: " ".join(f"--{option} {files}" for option, files in input.items()),
            results=f"--results {RESULTS}" if name in FIGURES_OF_JOBS else "",
            code=figure_code(
                f"scripts/figures/{name}.py", "clue/benchmark/report/plots.py", "clue/benchmark/report/reference.py"
            ),
        shell:
            "python -P $CLUE_CHECKOUT/{params.script} {params.files} {params.results} --display $CLUE_CHECKOUT/config/display.yaml"
            " --figure {output.png} --table {output.table} > {log} 2>&1"


rule probes:
    input:
        solutions=[solution(*split) for split in SIMULATED],
        embeddings=[
            f"{job.folder}/embedding.h5ad"
            for job in filter(has_one_space, RUNNABLE)
            if (job.dataset, job.split) in SIMULATED
        ],
    output:
        PROBES,
    log:
        f"{LOGS}/probes.log",
    benchmark:
        f"{LOGS}/probes.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        code=digest("scripts/probe.py", "clue/simulate.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/probe.py --solutions {input.solutions} --embeddings {input.embeddings}"
        " --table {output} --project $CLUE_CHECKOUT > {log} 2>&1"


rule comparison:
    input:
        metrics=TABLE,
        cells=[f"{job.folder}/cells.tsv.gz" for job in RUNNABLE],
    output:
        png=in_report(FIGURE.format(name="comparison"), "comparison"),
        pdf=f"{RESULTS}/figures/comparison.pdf",
        table=f"{RESULTS}/tables/comparison.tsv",
        summary=in_report(f"{RESULTS}/tables/summary.tsv", "summary"),
        intervals=f"{RESULTS}/tables/intervals.tsv",
    log:
        f"{LOGS}/figures/comparison.log",
    benchmark:
        f"{LOGS}/figures/comparison.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        folder=subpath(input.metrics, parent=True),
        code=figure_code("scripts/figures/comparison.py", "clue/benchmark/report/plots.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/figures/comparison.py --metrics {input.metrics} --cells {params.folder}"
        " --display $CLUE_CHECKOUT/config/display.yaml --figure {output.png} --table {output.table}"
        " > {log} 2>&1"


rule paper:
    input:
        metrics=TABLE,
        published=PUBLISHED,
        ablation=checkout_path("config/reference/ablation.tsv"),
    output:
        in_report(TABLE_OF.format(name="paper"), "paper"),
    log:
        f"{LOGS}/figures/paper.log",
    benchmark:
        f"{LOGS}/figures/paper.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        code=figure_code(
            "scripts/figures/paper.py", "clue/benchmark/report/plots.py", "clue/benchmark/report/reference.py"
        ),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/figures/paper.py --metrics {input.metrics} --published {input.published}"
        " --ablation {input.ablation} --display $CLUE_CHECKOUT/config/display.yaml --table {output} > {log} 2>&1"


rule umap:
    input:
        solution=f"{TASK}/solution.h5ad",
        embeddings=lambda wildcards: umap_embeddings(wildcards.dataset, wildcards.split),
    output:
        png=in_report(FIGURE.format(name="umap_{dataset}_{split}"), "umap", "Embeddings"),
        pdf=f"{RESULTS}/figures/umap_{{dataset}}_{{split}}.pdf",
        table=f"{RESULTS}/tables/umap_{{dataset}}_{{split}}.tsv.gz",
    log:
        f"{LOGS}/figures/umap_{{dataset}}_{{split}}.log",
    benchmark:
        f"{LOGS}/figures/umap_{{dataset}}_{{split}}.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        points=UMAP_POINTS,
        code=figure_code(
            "scripts/figures/umaps.py",
            "clue/benchmark/report/plots.py",
            "clue/benchmark/report/umap.py",
            "clue/matching.py",
        ),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/figures/umaps.py --solution {input.solution} --embeddings {input.embeddings}"
        " --points {params.points} --seed 0 --display $CLUE_CHECKOUT/config/display.yaml --figure {output.png}"
        " --table {output.table} > {log} 2>&1"


rule integration_scores:
    input:
        solution=f"{TASK}/solution.h5ad",
        embeddings=lambda wildcards: umap_embeddings(wildcards.dataset, wildcards.split),
    output:
        f"{TASK}/integration.tsv",
    log:
        f"{LOGS}/{{dataset}}/{{split}}/integration.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{split}}/integration.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(30),
    params:
        points=INTEGRATION_POINTS,
        code=digest("scripts/integration.py", "clue/benchmark/report/umap.py", "clue/matching.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/integration.py --solution {input.solution} --embeddings {input.embeddings}"
        " --points {params.points} --seed 0 --table {output} > {log} 2>&1"


rule datasets:
    input:
        datasets=filter(is_available, expand(PREPARED, dataset=BENCHMARK.datasets)),
        solutions=[solution(*split) for split in SPLITS],
    output:
        in_report(f"{RESULTS}/tables/datasets.tsv", "datasets", "Data"),
    log:
        f"{LOGS}/figures/datasets.log",
    benchmark:
        f"{LOGS}/figures/datasets.benchmark.tsv"
    conda:
        "../envs/python.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        code=figure_code("scripts/figures/datasets.py", "clue/benchmark/report/plots.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/figures/datasets.py --datasets {input.datasets} --solutions {input.solutions}"
        " --display $CLUE_CHECKOUT/config/display.yaml --table {output} > {log} 2>&1"


rule html_report:
    input:
        figures=FIGURES,
        tables=TABLES,
        collected=[TABLE, RESOURCES, f"{RESULTS}/failures.tsv"],
        captions=[checkout_path(f"rules/captions/{path.name}") for path in sorted(ROOT.glob("rules/captions/*.rst"))],
    output:
        REPORT,
    log:
        f"{LOGS}/figures/report.log",
    benchmark:
        f"{LOGS}/figures/report.benchmark.tsv"
    localrule: True
    conda:
        "../envs/python.yaml"
    params:
        folder=subpath(output[0], parent=True),
        config=to_json(BENCHMARK.config),
        configfiles=" ".join(map(os.path.relpath, workflow.configfiles)),
        code=figure_code("scripts/figures/report*", "clue/benchmark/report/plots.py"),
    shell:
        "python -P $CLUE_CHECKOUT/scripts/figures/report.py --results {params.folder} --figures {input.figures}"
        " --captions $CLUE_CHECKOUT/rules/captions --config {params.config:q} --configfiles {params.configfiles:q}"
        " --display $CLUE_CHECKOUT/config/display.yaml --output {output} > {log} 2>&1"
