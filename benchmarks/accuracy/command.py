"""What methods reach, as tables: `python benchmarks/accuracy NAME --data DIR`.

A recipe is a pipeline and a list of variants of it, in `benchmarks/accuracy/recipes`. Every variant is run with every
seed, through the engine: what the store holds is not run again, so that a run that was ended goes on where it was, and
what variants share is done once. A variant that fails is named at the end, and loses none of the others.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recipe import Recipe, known, load_recipe, load_variant
from results import Found, make_table, read_run

from kdpipe.pipeline.pipeline_run import run_pipeline
from kdpipe.pipeline.store import Store, default_root
from kdpipe.targets.errors import KdpipeError


def as_file_name(variant: str) -> str:
    """Return a variant's name without what can't stand in a path."""
    return re.sub(r"[^\w.]+", "-", variant).strip("-")


def run_all(
    name: str, recipe: Recipe, seeds: Sequence[int], data: Path, out: Path, store: Store, settings: Sequence[str]
) -> dict[str, dict[int, Found]]:
    """Run each variant with each seed, seed by seed; say on stderr how far it is."""
    runs: dict[str, dict[int, Found]] = {variant: {} for variant in recipe.variants}
    for seed in seeds:
        for variant, choice in recipe.variants.items():
            folder = out / name / f"{as_file_name(variant)}-{seed}"
            started = time.perf_counter()
            spec = load_variant(name, choice, seed, data, settings)
            result = run_pipeline(spec, store, folder, only=recipe.stages)
            if result.interrupted:
                raise KeyboardInterrupt
            found = runs[variant][seed] = read_run(folder)
            reached = found.accuracies.get(recipe.accuracy)
            shown = f"{reached:.2%}" if reached is not None else f"failed: {found.error}"
            print(f"{variant}, seed {seed}: {shown} ({time.perf_counter() - started:.0f} s)", file=sys.stderr)
    return runs


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit code: 3 if a run failed, 2 if something can't be run at all."""
    try:
        return compare(arguments)
    except KdpipeError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accuracy: interrupted. What is finished is kept: the same command goes on from here", file=sys.stderr)
        return 130


def compare(arguments: Sequence[str]) -> int:
    """Run one recipe and print its table; return 3 if a run failed, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python benchmarks/accuracy", description=__doc__)
    parser.add_argument("recipe", choices=known())
    parser.add_argument("--data", type=Path, default=Path(), help="the folder that the recipe's files are in")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the recipe's")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="for the runs' folders")
    parser.add_argument("--store", type=Path, help="of finished stages")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every variant")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe)
    if options.variants is not None:
        unknown = [name for name in options.variants if name not in recipe.variants]
        if unknown:
            parser.error(f"no variant {unknown[0]!r}; there are {', '.join(map(repr, recipe.variants))}")
        chosen = {name: variant for name, variant in recipe.variants.items() if name in options.variants}
        recipe = recipe.model_copy(update={"variants": chosen})
    store = Store(options.store or default_root())
    seeds = options.seeds or recipe.seeds
    runs = run_all(options.recipe, recipe, seeds, options.data, options.out, store, options.set)
    print(f"{recipe.question}\n\n{recipe.protocol.strip()} Seeds {', '.join(map(str, seeds))}.\n")
    print(make_table(recipe, runs))
    failed = [(name, seed, found.error) for name, by in runs.items() for seed, found in by.items() if found.error]
    for name, seed, error in failed:
        print(f"failed: {name}, seed {seed}: {error}", file=sys.stderr)
    return 3 if failed else 0
