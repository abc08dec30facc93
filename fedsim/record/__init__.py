"""Run folders: what a run was, what it measured, and the figures, readable at any moment and after any crash.

    experiment.toml    the resolved experiment: runs again as it is
    environment.json   versions, platform, threads, device
    schedule-seed1.npz who was present when, one per seed
    metrics.csv        strategy, seed, round, metric, value: a line as soon as it is measured
    times.csv          strategy, seed, round, seconds: how long the run had taken by then (no part of its results)
    hashes.csv         strategy, seed, round, model, chain: what the model was, and a seal on all of it
    clients.csv        strategy, seed, client, ...: how each fares at the end of a run, where clients are measured
    result.json        the finished runs, replaced as a whole after each
    tune.json          how the settings were chosen, where the experiment had a table [tune]
    checkpoints/       where it stood last, for `fedsim resume`; gone when it is over
    *.png, *.svg       figures
    report.html        all of it as a page

What is added to a csv is written whole or not at all, every other file is written beside its place and renamed. While
a process writes there, no other can. environment.json says which format a folder has: `FORMAT`.
"""

from fedsim.record.contents import check_format, check_free, lacking
from fedsim.record.folder import RunFolder, note
from fedsim.record.origin import default_folder, environment
from fedsim.record.reading import (
    Measurement,
    read_clients,
    read_metrics,
    read_result,
    read_times,
    read_tuning,
)

__all__ = [
    "Measurement",
    "RunFolder",
    "check_format",
    "check_free",
    "default_folder",
    "environment",
    "lacking",
    "note",
    "read_clients",
    "read_metrics",
    "read_result",
    "read_times",
    "read_tuning",
]
