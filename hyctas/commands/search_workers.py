"""Let the workers of a cluster score the networks of a search, and train its finalists."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from export.errors import InvalidInput, LeaveOut
from export.files import write_bytes
from export.machine import hardware
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.artifacts.runs import Run, package_versions, recorded_preprocessing
from hyctas.cli.show import Bar, Shown, say
from hyctas.commands.datasets import DataSet, open_dataset
from hyctas.commands.network_training import NETWORK_FILES, fit_network, network_config
from hyctas.commands.search_scorer import open_scorer
from hyctas.pretrained.start import Start, find_start, supernet_start
from hyctas.ray_cluster import Cluster, open_cluster
from hyctas.search.history import SCREEN, SEARCH
from hyctas.training.config import NetworkRecipe
from hyctas.workers import Pool

if TYPE_CHECKING:
    from hyctas.cli.search import SearchJob

RECORD = "train-network.json"
SUPERNET_FILES = ("train-supernet.json", "supernet.safetensors")


def search_facts(data: DataSet) -> dict[str, Any]:
    """Return what must be equal where networks are scored and trained, for equal results."""
    machine = hardware()
    gpus = sorted({gpu["name"] for gpu in machine["gpus"]})
    decisive = {name: machine[name] for name in ("cpu", "instruction_sets", "architecture")}
    return {"versions": package_versions(), "machine": {**decisive, "gpus": gpus}, "data": data.trained()}


class SearchWorker:
    """What a worker does for a search. It reads the data set where this command does, and is sent everything else.

    Args:
        job: the search; its run folder is not looked at.
        files: `SUPERNET_FILES`, by name.
        command_line: of the command, for the records of trainings.
    """

    kind = ""

    def __init__(self, job: SearchJob, files: Mapping[str, bytes], command_line: Sequence[str]) -> None:
        sys.argv = list(command_line)
        with TemporaryDirectory() as scratch:
            folder = write_files(Path(scratch), files)
            supernet, preprocessing = SupernetRecord.read(folder), recorded_preprocessing(folder / SUPERNET_FILES[0])
            self.data = replace(open_dataset(job.data or supernet.data, check=False), val=())
            self.scorer = open_scorer(replace(job, run=folder), supernet, self.data, preprocessing)
            self.start = supernet_start(supernet, self.scorer.supernet, job.run.name)
        self.facts = search_facts(self.data)

    def score(self, kind: str, genotype: Genotype) -> float:
        """Return a network's mIoU on all images, or on a few."""
        return self.scorer.screen(genotype) if kind == SCREEN else self.scorer(genotype)

    def train(
        self, genotype: Genotype, recipe: NetworkRecipe, folder: str, before: str | None, weights: Mapping[str, bytes]
    ) -> dict[str, bytes]:  # fmt: skip
        """Train a network; return the files of its run folder, its record among them.

        Args:
            genotype: the network.
            recipe: how.
            folder: its place in the search's run folder.
            before: that of the training that it continues, whose files are `weights`; none: it starts from the supernet.
            weights: files by name.
        """
        with TemporaryDirectory() as scratch:
            start: Start | None = self.start
            if before is not None:
                former = write_files(Path(scratch) / before, weights)
                start = find_start(str(former), Path(scratch))
            config = network_config(recipe, genotype, self.data, start)
            run = Run(Path(scratch) / folder, "train-network", config, NETWORK_FILES)
            fit_network(run, genotype, recipe, self.data, start, show=_silent, on_status=lambda text: None)
            return read_files(run.folder)


@contextmanager
def _silent(name: str) -> Iterator[Shown]:
    yield Bar(name, None, shown=False)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return what a training left in its run folder, by name; its record last, which says that the rest is whole."""
    return {path.name: path.read_bytes() for name in (*NETWORK_FILES, RECORD) if (path := folder / name).is_file()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_bytes(folder / name, data)
    return folder


@contextmanager
def cluster_of(job: SearchJob) -> Iterator[Callable[[], Cluster] | None]:
    """Give what opens the cluster that a search asks for, once, when it is first needed; None where it asks for none."""
    if job.ray is not None and job.workers is not None:
        both = "a search has the workers of a cluster that runs, or some on this machine, not both"
        raise InvalidInput(both, LeaveOut(("workers",)), LeaveOut(("ray",)))
    if job.ray is None and job.workers is None:
        yield None
        return
    with ExitStack() as stack:
        opened: list[Cluster] = []

        def cluster() -> Cluster:
            if not opened:
                say("starting the workers" if job.ray is None else f"connecting to the Ray cluster at {job.ray}")
                opened.append(stack.enter_context(open_cluster(job.ray, job.workers, job.settings.threads)))
            return opened[0]

        yield cluster


@dataclass
class SearchTeam:
    """The workers of one search, started when the first task comes. Use as a context manager."""

    job: SearchJob
    data: DataSet
    cluster: Callable[[], Cluster]

    @cached_property
    def pool(self) -> Pool:
        """The workers."""
        cluster = self.cluster()
        files = cluster.put({name: (self.job.run / name).read_bytes() for name in SUPERNET_FILES})
        command_line = [Path(sys.argv[0]).name, *sys.argv[1:]]
        return Pool(cluster, SearchWorker, (self.job, files, command_line), search_facts(self.data), say)

    def ahead(self, kind: str, genotypes: Sequence[Genotype]) -> None:
        """Let the workers score networks."""
        for genotype in genotypes:
            self.pool.submit((kind, genotype.id), "score", kind, genotype, near=(SCREEN, genotype.id))

    def __call__(self, genotype: Genotype) -> float:
        """Return the mIoU of a network on all images."""
        return float(self.pool.result((SEARCH, genotype.id)))

    def screen(self, genotype: Genotype) -> float:
        """Return the mIoU of a network on a few images."""
        return float(self.pool.result((SCREEN, genotype.id)))

    def train_ahead(self, genotype: Genotype, recipe: NetworkRecipe, folder: str, before: str | None) -> None:
        """Let a worker train a network; its files are written as soon as they come."""
        weights = {} if before is None else read_files(self.job.run / before)

        def arrived(files: dict[str, bytes]) -> None:
            write_files(self.job.run / folder, files)

        self.pool.submit(folder, "train", genotype, recipe, folder, before, weights, arrived=arrived)

    def trained(self, folder: str) -> None:
        """Wait for a training.

        Raises:
            CheckFailed: it failed.
        """
        self.pool.result(folder)

    def __enter__(self) -> SearchTeam:
        return self

    def __exit__(self, *exception: object) -> None:
        if "pool" in self.__dict__:
            self.pool.close()
