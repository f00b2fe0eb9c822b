"""Write one table of every published number beside the one of this run, with a verdict."""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clue.benchmark import style, tables
from clue.benchmark.errors import run_program
from clue.benchmark.reference import OVERALL, competition_scores, read_drops, read_published
from clue.benchmark.stats import relative_changes, summarise

COLUMNS = ["file", "label", "dataset", "split", "direction", "metric", "published", "ours", "method_here", "seeds"]
COLUMNS += ["lowest", "highest", "difference", "verdict", "why", "evidence", "source", "note"]
NOT_RUN = "not run here"
DROP_VERDICTS = {"better": "smaller drop", "worse": "larger drop"}


def verdict(published: float, values: Sequence[float], better: str) -> str:
    """Compare a published number with the seeds of this run.

    Returns
    -------
    ``within seeds`` where it lies between the lowest and the highest seed, else ``better`` or ``worse``, which is
    said of this run.
    """
    if min(values) <= published <= max(values):
        return "within seeds"
    return "better" if (np.mean(values) > published) == (better == "higher") else "worse"


def compare(row: pd.Series, values: pd.Series, better: str) -> dict:
    """Return the columns that say how this run compares with a published number."""
    summary = summarise(values)
    here = {"ours": summary.mean, "seeds": summary.n, "lowest": values.min(), "highest": values.max()}
    return here | {"difference": summary.mean - row["published"], "verdict": verdict(row["published"], values, better)}


def candidates(method: str, table: pd.DataFrame) -> list[str]:
    """Return the methods of this run that reproduce a published one: of its name, or with its name as a prefix."""
    return [name for name in dict.fromkeys(table["method"]) if name == method or name.startswith(f"{method}_")]


def score_rows(published: pd.DataFrame, table: pd.DataFrame, display: style.Display) -> list[dict]:
    """Return a row per published score and method of this run that reproduces it."""
    rows = []
    for _, row in published.rename(columns={"value": "published"}).iterrows():
        names = candidates(row["method"], table)
        why = why_not(row, names, table, display)
        if why:
            rows.append({**row, "verdict": NOT_RUN, "why": why})
            continue
        for name in names:
            values, reason = own_values(row, name, table)
            known = {**row, "method_here": name}
            if len(values):
                better = display.entry("metrics", row["metric"])["better"]
                rows.append(known | compare(row, values, better))
            else:
                rows.append(known | {"verdict": NOT_RUN, "why": reason})
    return rows


def own_values(row: pd.Series, name: str, table: pd.DataFrame) -> tuple[pd.Series, str]:
    """Return the values of a method of this run to set beside a published number, or why there are none."""
    if row["direction"] == OVERALL:
        scores = competition_scores(table).get(name, pd.DataFrame(columns=[OVERALL]))
        return scores[OVERALL].dropna(), "no seed has scores of all four sub-tasks"
    jobs = tables.rows_of(table, dataset=row["dataset"], split=row["split"], method=name, variant="default")
    found = tables.scores(jobs, row["metric"], row["direction"])
    return found.values, found.reason


def why_not(row: pd.Series, names: Sequence[str], table: pd.DataFrame, display: style.Display) -> str:
    """Return why this run has nothing to set beside a published number, or nothing where it has."""
    if not display.entry("metrics", row["metric"]):
        return "not a score of this benchmark"
    if not names:
        return "the method is not part of this run"
    here = tables.rows_of(table, dataset=row["dataset"], split=row["split"])
    if here.empty and row["direction"] != OVERALL:
        return f"the data set {row['dataset']} (split {row['split']}) is not part of this run"
    return ""


def drop_rows(drops: pd.DataFrame, table: pd.DataFrame) -> list[dict]:
    """Return a row per published drop and split of this run that has the ablation."""
    rows = []
    for _, drop in drops.iterrows():
        base = {"file": "ablation.tsv", "label": f"{drop['method']}, {drop['variant']}", "direction": "both"}
        base |= {"metric": f"change of {drop['metric']} (%)", "published": -drop["drop_percent"]}
        base |= {key: drop[key] for key in ("evidence", "source", "note")}
        found = []
        for dataset, split in tables.panels(table):
            here = tables.rows_of(table, dataset=dataset, split=split, method=drop["method"])
            full, part = (
                tables.scores(tables.rows_of(here, variant=variant), drop["metric"]).values
                for variant in ("default", drop["variant"])
            )
            values = relative_changes(full, part)
            if len(values):
                place = {"dataset": dataset, "split": split, "method_here": drop["method"]}
                compared = compare(pd.Series(base), values, "higher")
                compared["verdict"] = DROP_VERDICTS.get(compared["verdict"], compared["verdict"])
                found.append(base | place | compared)
        rows += found or [base | {"verdict": NOT_RUN, "why": "the ablation is not part of this run, or has no scores"}]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.tsv of a run")
    parser.add_argument("--published", required=True, nargs="+", help="files of config/reference with scores")
    parser.add_argument("--ablation", required=True, help="config/reference/ablation.tsv")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display, table = style.Display(args.display), tables.read_metrics(args.metrics)
    rows = score_rows(read_published(args.published), table, display) + drop_rows(read_drops(args.ablation), table)
    tables.write_table(pd.DataFrame(rows, columns=COLUMNS), args.table)


if __name__ == "__main__":
    run_program(main)
